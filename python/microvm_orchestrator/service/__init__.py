"""Every operation a front end can ask for: one file per noun, returning models, raising errors."""
