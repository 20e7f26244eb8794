{ self }:
{ ... }:
{
  system.stateVersion = "26.05";
}
