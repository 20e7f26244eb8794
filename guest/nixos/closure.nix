# How large the guest is: `system.build.closureSize` lists what it is made of, the largest first.
{ config, pkgs, ... }:
{
  system.build.closureSize =
    pkgs.runCommand "closure-size-${config.networking.hostName}"
      {
        closure = pkgs.closureInfo { rootPaths = [ config.system.build.toplevel ]; };
      }
      ''
        mkdir -p $out
        xargs du -s --apparent-size --block-size=1 <$closure/store-paths | sort -rn >$out/paths
        total=$(cut -f 1 $out/paths | paste -s -d +)
        echo $((total / 1048576)) >$out/mib
        echo "${config.networking.hostName}: $(cat $out/mib) MiB in $(wc -l <$out/paths) paths"
        head -n 20 $out/paths
      '';
}
