"""beauty-finder's own command: from the files of Amazon Reviews 2023 to what Palate indexes, trains on and evaluates.

    beauty.py generate [--items N] [--reviews N] [--seed N] [--force]   made-up files of the same format
    beauty.py about                                                     what there is, damaged lines by name
    beauty.py extract [--model NAME [--url URL]] [--what ...]           who, when and why of reviews; page summaries
    beauty.py items                                                     the catalogue (`items.source` of app.yaml)
    beauty.py pairs [--query ...] [--limit N]                           training examples (`train.*.data.extra`)
    beauty.py cases --split valid|test [--query ...] [--limit N]        evaluation cases

All of them take `--data DIR` (default: PALATE_BEAUTY_DATA, else $PALATE_HOME/cache/beauty-finder), which holds the
files in `raw/`. Where there are none, a small made-up set is written, and says so; where nothing was extracted yet,
rules do it. Progress, rate and peak memory go to stderr. Exit status: 0 done, 1 with a line that says what to do.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import resource
import shutil
import sys
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import made_up
import orjson
import steps
from forms import KEYWORDS, SUMMARY, rules_of
from reviews import PRODUCTS, REVIEWS, Damage, NoData, raw_file
from rich.console import Console
from steps import Data

from training.batch.ask import Asker, Patience
from training.batch.connect import own_model, read_key, server_model
from training.batch.file import Entry
from training.errors import TrainingError
from training.extract.job import Tally, extract_all, run_job
from training.extract.model import ModelExtractor
from training.extract.ports import Extractor, Form
from training.progress import Progress

FULL_ITEMS, FULL_REVIEWS = 112_000, 701_000
SMALL_ITEMS, SMALL_REVIEWS = 3_000, 20_000
COUNTED_BYTES = 1 << 20

notes = Console(stderr=True, soft_wrap=True)
progress = Progress("beauty-finder", notes)


def say(text: str) -> None:
    notes.print(f"  beauty-finder: {text}", highlight=False, markup=False)


def default_folder() -> Path:
    if own := os.environ.get("PALATE_BEAUTY_DATA"):
        return Path(own)
    return home_folder() / "cache" / "beauty-finder"


def home_folder() -> Path:
    home = os.environ.get("PALATE_HOME")
    return Path(home) if home else Path.home() / ".palate"


# ---- What the steps need


def is_there(data: Data, name: str) -> bool:
    return any((data.raw / f"{name}{end}").is_file() for end in ("", ".gz"))


def prepare(data: Data) -> None:
    """Raw files and extractions, made with what needs no model where they are missing. Two scripts at once: the second
    waits. Raises NoData where one raw file is there and the other is not."""
    data.folder.mkdir(parents=True, exist_ok=True)
    with locked(data):
        if not is_there(data, REVIEWS) and not is_there(data, PRODUCTS):
            say(f"no files in {data.raw}: a small MADE-UP set is written there; put {REVIEWS} and {PRODUCTS} into an "
                "empty folder, and name it with --data, to use them")  # fmt: skip
            write_made_up(data, SMALL_ITEMS, SMALL_REVIEWS, 0)
        raw_file(data.raw, REVIEWS), raw_file(data.raw, PRODUCTS)
        for form in (KEYWORDS, SUMMARY):
            out = file_of(data, form)
            if not out.exists():
                aside = out.with_name(f"{out.name}.partial")
                aside.unlink(missing_ok=True)  # of a run that was killed: rules are quick to begin anew
                with counted(f"{form.name} by rules", total_lines(data, form)) as tell:
                    run_job(inputs_of(data, form), aside, rules_of(form), progress=lambda done, _, t=tell: t(done))
                aside.replace(out)


@contextmanager
def locked(data: Data) -> Iterator[None]:
    with (data.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_made_up(data: Data, items: int, reviews: int, seed: int) -> None:
    """Raises NoData where it would write over files that are not made up."""
    if (is_there(data, REVIEWS) or is_there(data, PRODUCTS)) and not (data.raw / made_up.NOTE).exists():
        raise NoData(f"{data.raw} holds files that are not made up: they are not written over; name another --data")
    for old in (data.keywords, data.summaries, data.folder / "split.json", *data.folder.glob("*.jsonl.partial")):
        old.unlink(missing_ok=True)
    shutil.rmtree(data.raw, ignore_errors=True)
    with ExitStack() as stack:
        told: dict[str, Callable[[int], None]] = {}

        def tell(step: str, done: int, total: int) -> None:
            if step not in told:
                stack.close()
                told[step] = stack.enter_context(progress.step(f"writing made-up {step}", total))
            told[step](done)

        made_up.write(data.raw, items, reviews, seed, tell)


def file_of(data: Data, form: Form) -> Path:
    return data.keywords if form is KEYWORDS else data.summaries


def inputs_of(data: Data, form: Form) -> Iterator[Entry]:
    if form is KEYWORDS:
        return (Entry(str(review.line), steps.review_text(review)) for review in data.reviews())
    return (Entry(product.id, steps.page_text(product)) for product in data.products())


def total_lines(data: Data, form: Form) -> int | None:
    """Of a plain raw file; None of a packed one, which would have to be unpacked."""
    path = raw_file(data.raw, REVIEWS if form is KEYWORDS else PRODUCTS)
    if path.suffix == ".gz":
        return None
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(COUNTED_BYTES), b""))


@contextmanager
def counted(name: str, total: int | None) -> Iterator[Callable[[int], None]]:
    with progress.step(name, total) as tell:
        yield tell


# ---- Commands


def generate(options: argparse.Namespace) -> None:
    data = Data(options.data)
    data.folder.mkdir(parents=True, exist_ok=True)
    with locked(data):
        if (is_there(data, REVIEWS) or is_there(data, PRODUCTS)) and not options.force:
            raise NoData(f"{data.raw} holds files already: --force writes over made-up ones")
        write_made_up(data, options.items, options.reviews, options.seed)
    say(f"{options.items:,} made-up items and {options.reviews:,} made-up reviews in {data.raw}")


def about(options: argparse.Namespace) -> None:
    data, damage = Data(options.data), Damage()
    with counted("reading", total_lines(data, KEYWORDS)) as tell:
        counts = steps.part_counts(data, damage, tell)
    print(f"{data.raw}{' (made up)' if (data.raw / made_up.NOTE).exists() else ''}")
    for name in ("items", "train", "valid", "test", "users"):
        print(f"  {name:6} {counts[name]:>9,}")
    print(f"  split: {steps.find_split(data)}\n  damaged: {damage}")
    for line in damage.named:
        print(f"    {line}")


def extract(options: argparse.Namespace) -> None:
    data = Data(options.data)
    raw_file(data.raw, REVIEWS), raw_file(data.raw, PRODUCTS)
    for form in (KEYWORDS, SUMMARY):
        if options.what in (form.name, "all"):
            asyncio.run(extract_form(data, form, options))


async def extract_form(data: Data, form: Form, options: argparse.Namespace) -> None:
    total = options.limit or total_lines(data, form)
    inputs = islice(inputs_of(data, form), options.limit)
    async with extractor_of(form, options) as extractor:
        with progress.step(f"{form.name} by {options.model or 'rules'}", total) as tell:

            def heard(done: int, tally: Tally) -> None:
                if done == 1 and tally.before:
                    say(f"{form.name}: goes on after line {tally.before:,}; the rate is of this run")
                tell(done)

            tally = await extract_all(inputs, file_of(data, form), extractor, options.restart, heard)
    say(f"{form.name}: {tally.before:,} lines were there, {tally.model:,} by the model, {tally.rules:,} by rules, "
        f"{tally.asked_again:,} asked again")  # fmt: skip


@asynccontextmanager
async def extractor_of(form: Form, options: argparse.Namespace) -> AsyncGenerator[Extractor, None]:
    """By a model of a server, by one in this process, or, where none is named, by rules."""
    if not options.model:
        if options.url:
            raise NoData("--url wants a --model: the name that the server knows it by")
        yield rules_of(form)
        return
    key = read_key(options.key_env, options.key_file)
    connected = (
        server_model(options.url, options.model, key, options.timeout_s)
        if options.url
        else own_model(options.model, home_folder())
    )
    async with connected as model:
        asker = Asker(model, options.concurrency, Patience(within_s=options.timeout_s))
        yield ModelExtractor(form, asker, rules_of(form), not options.unguided)


def items(options: argparse.Namespace) -> None:
    data = Data(options.data)
    prepare(data)
    with ExitStack() as stack:

        def tell(name: str) -> Callable[[int], None]:
            stack.close()
            total = total_lines(data, KEYWORDS if name.startswith("keywords") else SUMMARY)
            return stack.enter_context(progress.step(name, total))

        print_lines(steps.catalogue(data, tell))


def pairs(options: argparse.Namespace) -> None:
    data = Data(options.data)
    prepare(data)
    with counted("training pairs", total_lines(data, KEYWORDS)) as tell:
        count = print_lines(steps.pairs(data, options.query, options.limit, tell))
    say(f"{count:,} training pairs")


def cases(options: argparse.Namespace) -> None:
    data = Data(options.data)
    prepare(data)
    with counted(f"{options.split} cases", total_lines(data, KEYWORDS)) as tell:
        count = print_lines(steps.cases(data, options.split, options.query, options.limit, tell))
    say(f"{count:,} cases of the {options.split} part")


def print_lines(lines: Iterable[Any]) -> int:
    count = 0
    for line in lines:
        sys.stdout.buffer.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        count += 1
    sys.stdout.buffer.flush()
    return count


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="beauty.py", description="The steps of beauty-finder.")
    commands = top.add_subparsers(required=True)
    for run in (generate, about, extract, items, pairs, cases):
        command = commands.add_parser(run.__name__)
        command.set_defaults(run=run)
        command.add_argument(
            "--data", type=Path, default=default_folder(), help="folder of raw/ and what is made of it"
        )
        if run is generate:
            command.add_argument("--items", type=int, default=FULL_ITEMS)
            command.add_argument("--reviews", type=int, default=FULL_REVIEWS)
            command.add_argument("--seed", type=int, default=0)
            command.add_argument("--force", action="store_true", help="write over made-up files")
        elif run is extract:
            add_extract(command)
        elif run in (pairs, cases):
            command.add_argument("--query", choices=("review_text", "keywords", "both"),
                                 default="both" if run is pairs else "review_text")  # fmt: skip
            command.add_argument("--limit", type=int, help="so many reviews at most, the same in every run")
        if run is cases:
            command.add_argument("--split", choices=("valid", "test"), default="valid")
    return top


def add_extract(command: argparse.ArgumentParser) -> None:
    command.add_argument("--what", choices=("keywords", "summary", "all"), default="all")
    command.add_argument("--url", default="", help="OpenAI-compatible server, to /v1; none: vLLM in this process")
    command.add_argument("--model", default="", help="the server's name for it, `tiny`, or a folder; none: by rules")
    command.add_argument("--key-env", default="", help="environment variable that holds the server's key")
    command.add_argument("--key-file", type=Path, help="file that holds it")
    command.add_argument("--concurrency", type=int, default=32, help="requests under way at once: the server's batch")
    command.add_argument("--timeout-s", type=float, default=120.0)
    command.add_argument("--unguided", action="store_true", help="for servers that know no JSON schemas")
    command.add_argument("--limit", type=int, help="only the first N; a later run goes on after them")
    command.add_argument("--restart", action="store_true", help="begin anew; the old file is kept as .previous")


def main() -> int:
    options = parser().parse_args()
    try:
        options.run(options)
    except (NoData, TrainingError, ValueError, OSError) as error:
        say(str(error))
        return 1
    say(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
