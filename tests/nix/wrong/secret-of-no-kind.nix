# credentials."anthropic": a name is anthropic-api-key, anthropic-oauth, openai-api-key
{
  services.microvm-orchestrator = {
    enable = true;
    credentials.anthropic = "/run/secrets/anthropic";
  };
}
