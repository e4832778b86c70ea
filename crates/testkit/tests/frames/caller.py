"""Every case of callers against a running proxy, in whole frames and in pieces of a few bytes.

Arguments: target, authority, file of cases. Prints failures, and a count.
"""
import json
import sys
import time

import hyperframe.frame as hf
from language import CODES, LONG, PREFACE, Speaker, cases, connect, frame, settings

target, authority, file = sys.argv[1:]


def ask(path, number="0"):
    """A plain request on a connection of its own; the body of the answer."""
    speaker = Speaker(connect(target), number, authority)
    speaker.send(PREFACE + settings())
    speaker.step(f"HEADERS 1 ES+EH get :path={path} -x-case")
    # Longer than its window would be a mistake of this program.
    speaker.send(frame(8, 0, 0, (1 << 24).to_bytes(4, "big")) + frame(8, 0, 1, (1 << 24).to_bytes(4, "big")))
    speaker.until("answer", lambda: speaker.ended(1))
    speaker.sock.close()
    assert speaker.statuses(1) == [200], speaker.told()
    return speaker.body(1)


def goes_on(speaker):
    """Why the connection is not as good as before; None if it is."""
    if not speaker.ping():
        return "the connection is over"
    stream = speaker.highest + 2
    speaker.step("HEADERS N ES+EH get x-case=probe")
    speaker.until("answer to the next request", lambda: speaker.ended(stream) or stream in dict(speaker.resets()))
    if speaker.statuses(stream) != [200] or speaker.body(stream) != b"ok":
        return f"the next request: {speaker.statuses(stream)} {speaker.body(stream)!r}"
    return None


def holds(speaker, expected):
    """Whether one thing that has to be is."""
    what, *rest = expected.split()
    if what == "connection":
        return speaker.over and speaker.goaways()[-1:] == [rest[0]]
    if what == "closed":
        return speaker.over
    if what == "stream":
        if rest[0] == "any":
            return rest[1] in dict(speaker.resets()).values()
        return (int(rest[0]), rest[1]) in speaker.resets()
    if what == "answer":
        stream = int(rest[0])
        return speaker.statuses(stream) == [int(rest[1])] and speaker.ended(stream)
    if what == "data":
        return len(speaker.body(int(rest[0]))) == int(rest[1])
    if what == "acks":
        return sum("ACK" in f.flags for f in speaker.of(hf.SettingsFrame)) == int(rest[0])
    if what == "setting":
        number, _, value = rest[0].partition("=")
        return any(f.settings.get(int(number)) == int(value) for f in speaker.of(hf.SettingsFrame))
    if what == "pongs":
        return [f.opaque_data.hex() for f in speaker.pongs()][:-1] == rest
    if what == "fine":
        return not speaker.resets() and not speaker.goaways()
    if what == "http1":
        return speaker.bytes.startswith(b"HTTP/1.1 " + rest[0].encode())
    if what in ("unseen", "whole", "broken", "field"):
        return True
    raise ValueError(expected)


def run(number, steps, ways, piece):
    speaker = Speaker(connect(target), number, authority)
    speaker.piece = piece
    speaker.plain = "plain" in steps
    speaker.bare = "bare" in steps
    steps = [step for step in steps if step not in ("", "plain", "bare")]
    begin = b"" if "nopreface" in steps else PREFACE + (b"" if "nosettings" in steps else settings())
    if "pieces" in steps:
        for at in range(len(begin)):
            speaker.send(begin[at:at + 1])
    else:
        speaker.send(begin)
    for step in steps:
        if step not in ("nopreface", "nosettings", "pieces"):
            speaker.step(step)
    ends = [any(part.split()[0] in ("connection", "closed", "http1") for part in way) for way in ways]
    if all(ends):
        speaker.until("end of the connection", lambda: False)
    else:
        # Streams end, or are answered, at their own time.
        for part in (part for way in ways for part in way):
            what, *rest = part.split()
            if what == "answer" and not any(ends):
                speaker.until(part, lambda: speaker.ended(int(rest[0])) or int(rest[0]) in dict(speaker.resets()))
        why = goes_on(speaker)
        if why:
            speaker.until("end", lambda: False)
            if not any(ends):
                return why + "; " + speaker.told()
    done = any(all(holds(speaker, part) for part in way) for way in ways)
    speaker.sock.close()
    return None if done else speaker.told()


def arrived(state, part, what):
    """Whether the server behind saw what it had to see."""
    if part[0] == "unseen":
        return what is None
    if part[0] == "whole":
        return what is not None and what["state"] == "whole"
    if part[0] == "broken":
        return what is None or what["state"] == "cut"
    if part[0] == "field":
        name, _, value = part[1].partition("=")
        return what is not None and [v for n, v in what["fields"] if n == name] == ([value] if value else [])
    return True


failures = []
known = []
for piece in (None, 5):
    for name, steps, ways in cases(file):
        for part in (part for way in ways for part in way):
            words = part.split()
            assert words[0] not in ("stream", "connection") or words[-1] in CODES, part
        number = len(known) + 1
        name += " (in pieces)" if piece else ""
        known.append((number, name, ways))
        try:
            why = run(number, steps, ways, piece)
        except Exception as error:  # noqa: BLE001
            why = f"{type(error).__name__}: {error}"
        if why:
            failures.append(f"{name}: {why}")

deadline = time.monotonic() + LONG
while True:
    saw = json.loads(ask("/seen"))
    missing = []
    for number, name, ways in known:
        what = saw["seen"].get(str(number))
        if not any(all(arrived(saw, part.split(), what) for part in way) for way in ways):
            missing.append(f"{name}: the server behind saw {what}")
    if not missing or time.monotonic() > deadline or any("unseen" in line for line in missing):
        break
    time.sleep(0.1)
failures += missing + [f"the server behind: {error}" for error in saw["errors"]]
for line in failures:
    print(line)
print(f"{len(known)} cases, {len(failures)} failures")
sys.exit(1 if failures else 0)
