"""Programs that write a journal until they are killed, overtaken or out of space: for the fault tests."""

WRITE_UNTIL_KILLED = """
import sys
from registry.database import open_database
from registry.journal import SqlEvidence, SqlJournal
from registry.rollout.state import AppState
from registry.schema import Release, ReleaseVersion
from registry.traffic import Block, Command, Entry, Evidence, Traffic

database = open_database(sys.argv[1])
journal, evidence = SqlJournal(database), SqlEvidence(database)
assert journal.take_lease("child", 600)
for n in range(1, 100_000):
    asked = journal.submit(Command("a", "pause", "child", f"number {n}", float(n)))
    block = lambda k: Block(float(n), (1.0,) * 50, "a" * 50, f"{n:08d}" * 50)
    evidence.add([Evidence("a", 1, "r", 3 * n - 2 + k, "canary", block(k)) for k in range(3)])
    release = ReleaseVersion(n, Release("a", {"n": n}, (), n, "0" * 64))
    entries = [Entry("a", n, float(n), "note", "child", f"entry {k}") for k in range(3)]
    journal.record("child", AppState("a", n), Traffic("a", n, n), entries, [release], [asked])
    print(n, flush=True)
"""

STEAL_AND_WRITE = """
import random, sys, time
from registry.database import open_database
from registry.errors import LeaseLost
from registry.journal import SqlJournal
from registry.rollout.state import AppState
from registry.traffic import Entry, Traffic

url, me, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
journal = SqlJournal(open_database(url, lock_timeout_s=60))
chance = random.Random(me)
written = refused = 0
sys.stdin.readline()
while written < rounds or not refused:
    if not journal.take_lease(me, 0.02):
        time.sleep(0.002)
        continue
    before = journal.states().get("a", AppState("a")).generation
    time.sleep(chance.choice([0.0, 0.0, 0.01, 0.03, 0.05]))  # sometimes it stalls for longer than its lease
    try:
        entry = Entry("a", 1, 0.0, "note", me, "", before + 1)
        journal.record(me, AppState("a", before + 1), Traffic("a", before + 1, 1), [entry])
        written += 1
    except LeaseLost:
        refused += 1
print(written, refused, flush=True)
"""

FILL_THE_DISK = """
import resource, sys
from registry.database import open_database
from registry.errors import RegistryUnavailable
from registry.journal import SqlJournal
from registry.rollout.state import AppState
from registry.traffic import Entry, Traffic

journal = SqlJournal(open_database(sys.argv[1]))
assert journal.take_lease("child", 600)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
for n in range(1, 10_000):
    entries = [Entry("a", n, 0.0, "note", "child", "x" * 2000) for _ in range(3)]
    try:
        journal.record("child", AppState("a", n), Traffic("a", n, n), entries)
    except RegistryUnavailable:
        print("full at", n, flush=True)
        break
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.record("child", AppState("a", n), Traffic("a", n, n), entries)
print("went on", n, flush=True)
"""
