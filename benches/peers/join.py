#!/usr/bin/env python3
"""Joins what benches/peers/run wrote into one markdown table: ours, the best peer and all peers on every case.

    benches/peers/join.py [--brief] FILE...

--brief prints the geometric means alone: this is what README.md has.

Records meet where shape, case, place of the data and processor or adapter are the same. GB/s are those of the middle
round. A ratio is above 1 where ours is faster; the middle one of the rounds counts. Where theirs took turns with ours it is
that of the times of turns; else that in GB/s of medians, of each round of theirs with the runs of ours nearest to it,
before and behind, because a machine's memory may be faster in one minute than in the next. Wrong results are listed and not
compared.
"""
import json
import math
import pathlib
import sys

HEADER, RECORD = "byzclip-peers-1", "byzclip-bench-1"


class Bad(Exception):
    """Files that cannot be joined."""


def read(paths):
    """The headers and the records of files."""
    headers, records = [], []
    for path in paths:
        try:
            text = pathlib.Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Bad(f"cannot read {path}: got {error}; expected a file of benches/peers/run") from error
        for number, line in enumerate(text.splitlines(), 1):
            try:
                found = json.loads(line)
                {HEADER: headers, RECORD: records}[found["format"]].append(found)
            except (ValueError, KeyError, TypeError) as error:
                raise Bad(f"{path}, line {number}: got {line[:60]!r}; expected {HEADER} or {RECORD}") from error
    return headers, records


def key(record):
    """What has to be the same for a comparison; threads may differ, since some libraries have one."""
    machine = record["device"].partition(" x ")[0] if record["method"] == "host" else record["device"]
    return (*(record[field] for field in ("clients", "params", "case", "clipped", "method")), machine)


def name(record):
    return record["library"] + (f" ({record['backend']})" if record["method"] != "host" else "")


def middle(rounds):
    """The record of the middle speed, the slower one of two; a wrong one if there is any."""
    records = [record for _, record in rounds]
    wrong = [record for record in records if not record["verified"]]
    if wrong:
        return wrong[0]
    return sorted(records, key=lambda record: record["gb_per_s"])[(len(records) - 1) // 2]


def middle_ratio(ours, theirs):
    """Ours by theirs in the middle round, the lesser of two; None where there is nothing to compare."""
    if not ours or not all(record["verified"] for _, record in [*ours, *theirs]):
        return None
    ratios = []
    for place, record in theirs:
        if record.get("by_ours"):
            ratios.append(record["by_ours"])
            continue
        before = [our for our_place, our in ours if our_place < place][-1:]
        behind = [our for our_place, our in ours if our_place > place][:1]
        speed = geometric_mean([our["gb_per_s"] for our in before + behind])
        ratios.append(speed / record["gb_per_s"])
    return sorted(ratios)[(len(ratios) - 1) // 2]


def join(records):
    """For each key, in order of appearance: our record or None, and the peers', each with `ratio`, ours by theirs; those of
    the least ratio first, so the first is the best, and wrong ones last."""
    rows = {}
    for place, record in enumerate(records):
        # Rows out of scope and halves are ours alone, ceilings and `plain` are no peers.
        if record.get("dtype", "f32") != "f32":
            continue
        if record["scope"] != 1 or record["case"] == "ceiling" or record["library"] == "plain":
            continue
        rows.setdefault(key(record), {}).setdefault(name(record), []).append((place, record))
    joined = {}
    for of_key, found in rows.items():
        ours = found.pop("byzclip", None) or found.pop("byzclip (gpu)", None)
        peers = [middle(rounds) | {"ratio": middle_ratio(ours, rounds)} for rounds in found.values()]
        peers.sort(key=lambda r: (not r["verified"], r["ratio"] or 0, -(r["gb_per_s"] or 0)))
        joined[of_key] = (middle(ours) if ours else None, peers)
    return joined


def right(peers):
    return [peer for peer in peers if peer["verified"]]


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def case(record_key):
    _, _, stage, clipped, _, _ = record_key
    return stage if clipped is None else f"{stage} {clipped * 100:g} %"


def table(heads, rows, words):
    """A markdown table of which the first columns are words and the others figures."""
    lines = [heads, ["---"] * words + ["---:"] * (len(heads) - words), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def row(record_key, ours, peers):
    clients, params, _, _, method, _ = record_key
    shown = lambda record: f"{record['gb_per_s']:.1f}" if record else "–"
    best = next(iter(right(peers)), None)
    every = [f"`{name(peer)}` {shown(peer) if peer['verified'] else 'WRONG'}" for peer in peers]
    return [
        f"{clients:,} × {params:,}",
        case(record_key),
        method,
        f"`{name(best)}`" if best else "–",
        ", ".join(every) or "–",
        shown(ours),
        shown(best),
        f"{best['ratio']:.2f}" if best and best["ratio"] else "–",
    ]


def compared(joined):
    """Those keys that we and a peer have, each with our record and the peers' right ones."""
    found = {}
    for k, (ours, peers) in joined.items():
        if ours and ours["verified"] and right(peers):
            found[k] = (ours, right(peers))
    if not found:
        raise Bad("got no case that byzclip and a peer both have; expected some; see what benches/peers/run skipped")
    return found


def elsewhere(joined):
    """What has nothing of ours to be compared with, because that ran on another processor or adapter, as lines of a list."""
    ours_on = {}
    for (*_, method, machine), (ours, _) in joined.items():
        if ours:
            ours_on.setdefault(method, {})[machine] = None
    found = {}
    for (*_, method, machine), (ours, peers) in joined.items():
        if not ours and method in ours_on:
            found |= {f"- not compared: `{name(peer)}` ran on {machine}, ours on {', '.join(ours_on[method])}": None for peer in peers}
    return list(found)


def means(pairs):
    """The geometric mean of all best peers for each stage and place of the data, and that of each peer, as markdown."""
    ratios, by_peer = {}, {}
    for (_, _, stage, _, method, _), (_, peers) in pairs.items():
        ratios.setdefault((stage, method), []).append(peers[0]["ratio"])
        for peer in peers:
            by_peer.setdefault(name(peer), []).append(peer["ratio"])
    rows = [
        [f"{stage}, data on the {method}", str(len(values)), *(f"{of(values):.2f}" for of in (geometric_mean, min, max))]
        for (stage, method), values in ratios.items()
    ]
    parts = [table(["ours / best peer", "cases", "geometric mean", "least", "greatest"], rows, words=1), ""]
    of_peers = sorted((geometric_mean(values), peer, len(values)) for peer, values in by_peer.items())
    rows = [[f"`{peer}`", str(count), f"{mean:.2f}"] for mean, peer, count in of_peers]
    return [*parts, table(["peer", "cases", "ours / peer, geometric mean"], rows, words=1)]


def commit(header):
    """In short; what was measured is not what it has, where it says dirty."""
    return header["commit"][:12] + ("-dirty" if header["commit"].endswith("-dirty") else "")


def brief(headers, records):
    """The means alone, with what they were measured on and when."""
    joined = join(records)
    pairs = compared(joined)
    devices = dict.fromkeys(ours["device"] for ours, _ in pairs.values())
    notes = elsewhere(joined)
    when = [f"{header['date']}, commit {commit(header)}" for header in headers if "commit" in header]
    return "\n".join(["; ".join([*devices, *when]), "", *means(pairs), *([""] if notes else []), *notes])


def report(headers, records):
    """The whole page."""
    joined = join(records)
    pairs = compared(joined)
    devices = dict.fromkeys(ours["device"] for ours, _ in joined.values() if ours)
    parts = [f"byzclip on {', '.join(devices)}; GB/s of medians, for the bytes that one pass needs\n"]
    heads = ["clients × params", "case", "data", "best peer", "all peers", "ours", "best peer", "ours / best"]
    parts.append(table(heads, [row(k, *found) for k, found in joined.items()], words=5))

    parts += ["", *means(pairs)]

    notes = [
        f"- WRONG: `{name(peer)}` on {k[0]} × {k[1]}, {case(k)}: {peer.get('error', 'not verified')}"
        for k, (_, peers) in joined.items()
        for peer in peers
        if not peer["verified"]
    ]
    notes += elsewhere(joined)
    for header in headers:
        notes += [f"- skipped: {what}: {why}" for what, why in header.get("skipped", {}).items()]
    for header in headers:
        if "load" in header:
            notes.append(f"- {header['date']}, commit {commit(header)}, load before the run {header['load']:.2f}")
        versions = (f"`{what}` {version}" for what, version in header.get("versions", {}).items())
        notes += [f"- versions: {'; '.join(versions)}"] if header.get("versions") else []
    return "\n".join([*parts, "", *dict.fromkeys(notes)]).rstrip()


def main():
    is_brief = "--brief" in sys.argv[1:]
    files = [argument for argument in sys.argv[1:] if argument != "--brief"]
    if not files:
        sys.exit("join.py: got no file; expected benches/peers/join.py [--brief] FILE...")
    try:
        headers, records = read(files)
        print(brief(headers, records) if is_brief else report(headers, records))
    except Bad as error:
        sys.exit(f"join.py: {error}")


if __name__ == "__main__":
    main()
