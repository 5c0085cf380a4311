"""`telltale lab export`: a dictionary of ours in another library's format, with the same readings.

    telltale lab export runs/train/final --format saelens runs/export

`docs/formats.md` says what each format can hold.
"""

import json
import sys
from pathlib import Path

from discovery.argument_checks import check_counts
from discovery.command_parser import command_parser
from discovery.output_places import check_output
from sae_runtime.checkpoint import load_sae
from sae_runtime.exports import EXPORTERS, export_sae


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("Write a dictionary in another library's format.")
    parser.add_argument("dictionary", type=Path, help="its folder")
    parser.add_argument("output", type=Path, help="folder to write to")
    parser.add_argument("--format", required=True, choices=list(EXPORTERS), help="of the library that will read it")
    parser.add_argument("--k", type=int, help="k a BatchTopK dictionary was trained with, where its manifest is silent")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    args = parser.parse_args(argv)
    check_counts(args, "k")
    check_output("output", args.output, is_folder=True)
    sae = load_sae(args.dictionary)
    files = [str(path) for path in export_sae(sae, args.output, args.format, k=args.k)]
    if args.json:
        print(json.dumps({"format": args.format, "files": files, "sae_sha256": sae.manifest.sae_sha256}))
    else:
        print(f"{sae.manifest.name} for {args.format}: {', '.join(files)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
