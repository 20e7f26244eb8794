# What an address with a prefix length covers, told from its text. Above are the bridges.
{ lib }:
let
  inherit (lib)
    concatStrings
    concatMapStringsSep
    concatStringsSep
    toInt
    ;

  powerOfTwo = n: if n == 0 then 1 else 2 * powerOfTwo (n - 1);
  bits =
    width: number:
    concatStrings (
      map (place: toString (lib.mod (number / powerOfTwo place) 2)) (
        lib.reverseList (lib.range 0 (width - 1))
      )
    );
  number = digits: lib.foldl' (sum: digit: 2 * sum + toInt digit) 0 (lib.stringToCharacters digits);
  chunks =
    size: text:
    if text == "" then
      [ ]
    else
      [ (lib.substring 0 size text) ] ++ chunks size (lib.substring size (-1) text);
  padded = width: text: text + concatStrings (lib.genList (_: "0") (width - lib.stringLength text));

  parseV4 =
    text:
    let
      octet = "([0-9]{1,3})";
      found = builtins.match "${octet}[.]${octet}[.]${octet}[.]${octet}/([0-9]{1,2})" text;
      numbers = map lib.toIntBase10 found;
      octets = lib.take 4 numbers;
      length = lib.last numbers;
    in
    if found == null || lib.any (value: value > 255) octets || length < 1 || length > 32 then
      null
    else
      rec {
        address = concatMapStringsSep "." toString octets;
        prefixLength = length;
        all = concatStrings (map (bits 8) octets);
        prefix = lib.substring 0 length all;
        # Neither the network itself nor everybody in it, and there is room for somebody else.
        isHost =
          let
            own = lib.substring length (-1) all;
          in
          length <= 30 && lib.hasInfix "0" own && lib.hasInfix "1" own;
        first = concatMapStringsSep "." (part: toString (number part)) (chunks 8 (padded 32 prefix));
        network = "${first}/${toString length}";
      };

  parseV6 =
    text:
    let
      read = builtins.tryEval (
        let
          found = lib.network.ipv6.fromString text;
        in
        builtins.deepSeq found found
      );
      length = read.value.prefixLength;
      groups = map lib.fromHexString (lib.splitString ":" read.value.address);
    in
    # The parser of `lib` takes an address alone for one with 64 bits of prefix; we want them said.
    if !lib.hasInfix "/" text || !read.success || length < 1 then
      null
    else
      rec {
        inherit (read.value) address;
        prefixLength = length;
        all = concatStrings (map (bits 16) groups);
        prefix = lib.substring 0 length all;
        isHost = length <= 126 && lib.hasInfix "1" (lib.substring length (-1) all);
        first = concatStringsSep ":" (
          map (each: lib.toLower (lib.toHexString (number each))) (chunks 16 (padded 128 prefix))
        );
        network = "${first}/${toString length}";
      };

  checked =
    parse: description:
    lib.types.addCheck lib.types.str (text: parse text != null) // { inherit description; };
in
{
  inherit parseV4 parseV6;
  typeV4 = checked parseV4 "IPv4 address with a prefix length, as in 10.77.0.1/24";
  typeV6 = checked parseV6 "IPv6 address with a prefix length, as in fd77::1/64";
  overlap = a: b: lib.hasPrefix a.prefix b.prefix || lib.hasPrefix b.prefix a.prefix;
  isLoopback = address: lib.hasPrefix "127." address || address == "::1" || address == "localhost";
}
