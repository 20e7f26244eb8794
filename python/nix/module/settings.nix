# The daemon's own settings as options, read off `settings.json`, which `make docs` writes from the
# daemon's code: a key that nothing reads is no option, and Nix names the nearest one that is.
{ lib }:
let
  inherit (lib) mkOption types;

  known = lib.importJSON ./settings.json;

  number =
    kind: schema:
    let
      least = schema.minimum or null;
      above = schema.exclusiveMinimum or null;
      most = schema.maximum or null;
      fits =
        value:
        (least == null || value >= least)
        && (above == null || value > above)
        && (most == null || value <= most);
      limits =
        lib.optional (least != null) "at least ${toString least}"
        ++ lib.optional (above != null) "more than ${toString above}"
        ++ lib.optional (most != null) "at most ${toString most}";
    in
    types.addCheck kind fits
    // {
      description = lib.concatStringsSep ", " ([ kind.description ] ++ limits);
    };

  plain =
    schema:
    if schema ? enum then
      types.enum schema.enum
    else
      {
        boolean = types.bool;
        integer = number types.int schema;
        number = number types.number schema;
        string = types.str;
        array = types.listOf (typeOf schema.items);
        object = object schema;
      }
      .${schema.type};

  object =
    schema:
    if schema ? properties then
      types.submodule {
        options = lib.mapAttrs (
          name: field: option field (!lib.elem name (schema.required or [ ]))
        ) schema.properties;
      }
    else
      types.attrsOf (typeOf schema.additionalProperties);

  typeOf = schema: if schema ? anyOf then types.oneOf (map typeOf schema.anyOf) else plain schema;

  option =
    schema: optional:
    mkOption (
      {
        type = if optional then types.nullOr (typeOf schema) else typeOf schema;
        description = schema.description or "See the reference of the settings.";
      }
      // lib.optionalAttrs optional { default = null; }
    );

  # { "log.level" = option; } to { log.level = option; }
  tree = lib.foldl' lib.recursiveUpdate { } (
    map (each: lib.setAttrByPath (lib.splitString "." each.key) (option each true)) known
  );

  # What nobody has set is left to the daemon, and an empty table says nothing.
  said =
    value:
    if lib.isAttrs value then
      lib.filterAttrs (_: inner: inner != null && inner != { }) (lib.mapAttrs (_: said) value)
    else if lib.isList value then
      map said value
    else
      value;
in
{
  inherit said;
  # A table of the file is a submodule of its own, so that a wrong key is told with its place.
  type =
    let
      section =
        options:
        types.submodule {
          options = lib.mapAttrs (
            _: inner:
            if lib.isOption inner then
              inner
            else
              mkOption {
                type = section inner;
                default = { };
                description = "A table of the daemon's settings.";
              }
          ) options;
        };
    in
    section tree;
}
