#!/usr/bin/env python3
"""Times what people clip with in Python on the cases of `byzclip bench`: a header, then one line of JSON a case.

    benches/peers/peers.py [--shape NxD]... [--clipped 0,0.2,1] [--runs N] [--library TEXT]... [--beside FILE]
                           [--inject-fault]

A result is held against float64 before it is timed, and the last timed one again. One that is wrong becomes a line with
`verified: false` and `error`, and exit code 1. A library that cannot run here is named on stderr and in the header.
"""
import argparse
import contextlib
import datetime
import gc
import json
import platform
import statistics
import sys
import time

import numpy as np

import cases
import libraries


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", type=shape, metavar="NxD", help="again for more shapes")
    parser.add_argument("--clipped", type=shares, default=[0.0, 0.2, 1.0], help="shares of rows that are clipped")
    parser.add_argument("--runs", type=runs, default=cases.RUNS, help=f"runs of each case at least, not below {cases.RUNS}")
    parser.add_argument("--library", action="append", default=[], help="only those whose name contains this")
    parser.add_argument("--beside", metavar="FILE", help="byzclip_c of benches/peers/rust, for turns on host memory")
    parser.add_argument("--inject-fault", action="store_true", help="spoil every result: the check has to find it")
    return parser.parse_args()


def shape(text):
    try:
        return cases.Shape.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def shares(text):
    try:
        found = [float(share) for share in text.split(",")]
    except ValueError:
        found = [-1.0]
    if not all(0 <= share <= 1 for share in found):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected shares from 0 to 1 such as 0,0.2,1")
    return found


def runs(text):
    if not text.isdecimal() or int(text) < cases.RUNS:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected {cases.RUNS} or more: a median of fewer says little")
    return int(text)


def say(message):
    print(f"peers.py: {message}", file=sys.stderr, flush=True)


def emit(line):
    print(json.dumps(line), flush=True)


def available(wanted):
    """The peers that can run here, and why the others cannot."""
    peers, skipped = [], {}
    for family, found in libraries.FAMILIES.items():
        try:
            peers += found()
        except libraries.Missing as why:
            skipped[family] = str(why)
            say(f"SKIPPED {family}: {why}")
    if wanted:
        peers = [peer for peer in peers if any(text in peer.library for text in wanted)]
    return peers, skipped


# Runs that count before the other one has its turn: rust/src/peer.rs has both.
TURN = 3

# Seconds of runs before those that count. Threads that slept, or caches that hold another library's data, are what the first
# milliseconds measure.
WARM = 0.03

# Seconds of looking at what threads do, the share of them in which a process may run that waits, and seconds until it has to.
LOOK, IDLE, PATIENCE = 0.01, 0.1, 2.0


class Wrong(Exception):
    """What is wrong with a result of a peer."""


class OursFailed(Exception):
    """What is wrong with ours, which is no peer's fault."""


def measure(peer, batch, ours, count, inject):
    """The record of a peer on a batch that is filled; of an error where there are no right results."""
    try:
        return samples(peer, batch, ours if peer.method == "host" else None, count, inject)
    except Wrong as error:
        return failed(peer, batch, str(error))
    except (RuntimeError, MemoryError) as error:
        # Such as a device without memory for the shape.
        return failed(peer, batch, f"got {type(error).__name__}: {error}")
    finally:
        peer.unload()
        # Whatever it wrote: the next one has the same memory.
        np.copyto(batch.work, batch.original)


def failed(peer, batch, error):
    """A record without times: those of a wrong result say nothing."""
    return cases.record(peer, batch, [], []) | {"verified": False, "error": error}


def samples(peer, batch, ours, count, inject):
    wall, device, ratios = [], [], []
    peer.load(batch)
    while len(wall) < count:
        # The very first run is verified, and the last.
        ends = {"first": not wall, "last": len(wall) + TURN >= count}
        of_ours = turn_of_ours(ours, batch, ends) if ours and len(ratios) % 2 == 0 else None
        of_theirs, on_device = turn(peer, batch, inject=inject, **ends)
        if ours:
            # Whoever is first in one turn is second in the next.
            of_ours = of_ours or turn_of_ours(ours, batch, ends)
            ratios.append(statistics.median(of_theirs) / statistics.median(of_ours))
        wall += of_theirs
        device += on_device
    return cases.record(peer, batch, wall, device, ratios)


def turn_of_ours(ours, batch, ends):
    with blamed_on_ours():
        return turn(ours, batch, **ends)[0]


@contextlib.contextmanager
def blamed_on_ours():
    """What fails in here is no peer's fault."""
    try:
        yield
    except (Wrong, RuntimeError) as error:
        raise OursFailed(error) from error


def wait_for_threads():
    """Returns when no thread of the last turn spins any more.

    OpenBLAS's do so for a tenth of a second behind their last product, on the processors that the next library is to have.
    """
    end = time.perf_counter() + PATIENCE
    while time.perf_counter() < end:
        start, used = time.perf_counter(), time.process_time()
        time.sleep(LOOK)
        if time.process_time() - used <= IDLE * (time.perf_counter() - start):
            return
    say(f"threads still run {PATIENCE:g} s behind their last call; what comes next shares its processors with them")


def turn(peer, batch, first, last, inject=False):
    """The seconds of a turn's runs, by the host's clock and by the device's, behind some that warm up and are not counted."""
    wall, device = [], []
    warm, to_verify = 0.0, first
    wait_for_threads()
    while len(wall) < TURN:
        is_counted = warm >= WARM
        result, seconds, on_device = peer.timed()
        if is_counted:
            wall.append(seconds)
            device += [on_device] if on_device is not None else []
        else:
            warm += seconds
        if to_verify or (len(wall) == TURN and last):
            got = peer.values(result)
            wrong = batch.check(batch.spoiled(got) if inject else got)
            if wrong:
                raise Wrong(wrong)
            # Behind the check, which is another's work, it warms up again.
            warm, to_verify = 0.0, False
            del got
        del result
        peer.restore()
    return wall, device


def main():
    options = arguments()
    peers, skipped = available(options.library)
    if not peers:
        sys.exit("peers.py: got no library to time; expected one; install one, or see --library")
    emit({
        "format": "byzclip-peers-1",
        "program": "peers.py",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "python": platform.python_version(),
        "versions": {peer.library: peer.version for peer in peers},
        "skipped": skipped,
    })
    try:
        records = measured(options, peers, libraries.Byzclip(options.beside) if options.beside else None)
    except OursFailed as error:
        sys.exit(f"peers.py: byzclip, between the turns of others: {error}")
    wrong = sum(not record["verified"] for record in records)
    if options.inject_fault:
        sys.exit(f"peers.py: every result was spoiled; the check found {wrong} of {len(records)}")
    if wrong:
        sys.exit(f"peers.py: got {wrong} wrong results; expected none; see the lines with an error")


def measured(options, peers, ours):
    """The records of all cases, each written as soon as it is there."""
    records = []
    # A collection in the middle of a run would be timed with it.
    gc.disable()
    for shape in options.shape or cases.SHAPES:
        batch = cases.Batch(shape)
        for case in cases.cases(options.clipped):
            batch.fill(case)
            if ours:
                with blamed_on_ours():
                    ours.load(batch)
            for peer in (peer for peer in peers if case.stage in peer.stages):
                record = measure(peer, batch, ours, options.runs, options.inject_fault)
                gc.collect()
                emit(record)
                records.append(record)
                say(f"{shape}, {case}, {peer.library} ({peer.backend}): {verdict(record)}")
            if ours:
                ours.unload()
    return records


def verdict(record):
    if "error" in record:
        return record["error"]
    ratio = f", ours / theirs {record['by_ours']:.2f}" if record["by_ours"] else ""
    return f"{record['gb_per_s']:.2f} GB/s{ratio}"


if __name__ == "__main__":
    main()
