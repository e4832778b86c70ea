"""Attacks of RFC 9113 section 10.5 on a running proxy, one after the other, while another connection asks all the time.

Arguments: target, authority, the process ids of the proxies, how much larger they may become in MiB. The server behind
is origin.py. Prints what each attack came to.
"""
import sys
import threading
import time

import hpack
from language import LONG, PREFACE, Speaker, connect, frame, settings

target, authority, pids, most = sys.argv[1], sys.argv[2], [int(pid) for pid in sys.argv[3].split(",")], int(sys.argv[4])
failures, answered = [], [0]
over = threading.Event()


def resident(pid, field="VmRSS"):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field + ":")) / 1024


def forget_peak(pid):
    with open(f"/proc/{pid}/clear_refs", "w") as file:
        file.write("5")


def begin():
    speaker = Speaker(connect(target), "abuse", authority)
    speaker.send(PREFACE + settings())
    return speaker


def bystander():
    """Asks on a connection of its own until all is over."""
    try:
        while not over.is_set():
            speaker = begin()
            for _ in range(200):
                stream = speaker.highest + 2
                speaker.step("HEADERS N ES+EH get x-case=bystander")
                speaker.until("an answer", lambda: speaker.ended(stream) or speaker.resets() or speaker.over)
                statuses, body = speaker.statuses(stream), speaker.body(stream)
                if statuses != [200] or body != b"ok":
                    raise AssertionError(f"{stream}: {statuses} {body[:200]!r}; {speaker.told()}")
                answered[0] += 1
                if over.is_set():
                    break
            speaker.sock.close()
    except Exception as error:  # noqa: BLE001
        failures.append(f"the other connection: {type(error).__name__}: {error}")


def head(speaker, kind, *changes):
    """A block that leaves no entry in a table, for many streams."""
    speaker.bare = True
    return speaker.payload([kind, *changes])[0]


def flood(speaker, data):
    """Sends all of it while nothing is read, as far as that is taken; then reads to the end of it."""
    view = memoryview(data)
    stopped = time.monotonic() + LONG
    while view and not speaker.over:
        view = view[speaker.turn(view, limit=0.05):]
        if time.monotonic() > stopped:
            raise AssertionError("neither taken nor ended")


def streams(first, count):
    return range(first, first + 2 * count, 2)


def rapid_reset(speaker):
    block = head(speaker, "get", "+x-do=hang")
    flood(speaker, b"".join(frame(1, 5, n, block) + frame(3, 0, n, bytes([0, 0, 0, 8])) for n in streams(1, 20_000)))


def resets_by_fault(speaker):
    block = head(speaker, "get", "+connection=close")
    flood(speaker, b"".join(frame(1, 5, n, block) for n in streams(1, 20_000)))


def continuations(speaker):
    block = head(speaker, "get", "+x-a=1")
    flood(speaker, frame(1, 1, 1, block) + frame(9, 0, 1, b"\x00\x01a\x7f\x81\x7c" + b"v" * 16_000) * 1000)


def empty_continuations(speaker):
    flood(speaker, frame(1, 1, 1, head(speaker, "get")) + frame(9, 0, 1) * 100_000)


def settings_flood(speaker):
    flood(speaker, frame(4, 0, 0, b"\x00\x04\x00\x01\x00\x00") * 100_000)


def pings(speaker):
    flood(speaker, frame(6, 0, 0, b"12345678") * 100_000)


def priorities(speaker):
    flood(speaker, b"".join(frame(2, 0, n, bytes(5)) for n in streams(1, 100_000)))


def unknown(speaker):
    flood(speaker, frame(0x77, 0, 0, b"12345678") * 100_000)


def empty_data(speaker):
    flood(speaker, frame(1, 4, 1, head(speaker, "post", "+x-do=hang")) + frame(0, 0, 1) * 100_000)


def window_updates(speaker):
    flood(speaker, frame(1, 4, 1, head(speaker, "post", "+x-do=hang")) + frame(8, 0, 1, b"\0\0\0\1") * 100_000)


def small_data(speaker):
    """Nobody reads them."""
    speaker.send(frame(1, 4, 1, head(speaker, "post", "+x-do=stall")) + frame(0, 0, 1, b"x") * 10_000)
    speaker.ping()


def padded_data(speaker):
    """One byte, and 255 of padding each time."""
    speaker.send(frame(1, 4, 1, head(speaker, "post", "+x-do=stall")) + frame(0, 8, 1, b"\xff" + b"x" + bytes(255)) * 200)
    speaker.ping()


def bomb(speaker):
    """A field of four thousand bytes in the table, named sixteen thousand times by each of some requests."""
    first = hpack.Encoder().encode([(b"x-large", b"v" * 3900)])
    block = head(speaker, "get")
    data = frame(1, 5, 1, block + first)
    for n in streams(3, 100):
        data += frame(1, 5, n, block + b"\xbe" * 16_000)
    flood(speaker, data)
    speaker.ping()


def stalled(speaker):
    """A hundred large responses that nobody takes."""
    speaker.send(frame(4, 0, 0, b"\x00\x04\x00\x00\x00\x00"))
    block = head(speaker, "get", "+x-do=big")
    speaker.send(b"".join(frame(1, 5, n, block) for n in streams(1, 100)))
    speaker.until("heads", lambda: len([f for f in speaker.heard if hasattr(f, "fields")]) >= 100)


def drip(speaker):
    """A large response, byte by byte."""
    speaker.send(frame(4, 0, 0, b"\x00\x04\x00\x00\x00\x00"))
    speaker.send(frame(1, 5, 1, head(speaker, "get", "+x-do=big")))
    speaker.until("a head", lambda: any(hasattr(f, "fields") for f in speaker.heard))
    flood(speaker, frame(8, 0, 1, b"\0\0\0\1") * 20_000)


def unread(speaker):
    """Many responses, of which nothing is read."""
    block = head(speaker, "get")
    data = memoryview(b"".join(frame(1, 5, n, block) for n in streams(1, 20_000)))
    at = 0
    deadline = time.monotonic() + 2
    while at < len(data) and time.monotonic() < deadline:
        try:
            at += speaker.sock.send(data[at:at + 65536])
        except BlockingIOError:
            time.sleep(0.01)
        except ConnectionError:
            break


# Whether it is sent away, stays, or may do as it likes.
ATTACKS = [
    (rapid_reset, "calm"), (resets_by_fault, "calm"), (continuations, "calm"), (empty_continuations, "calm"),
    (settings_flood, "calm"), (pings, "calm"), (priorities, "calm"), (unknown, "calm"), (empty_data, "calm"),
    (window_updates, "calm"), (small_data, "stays"), (padded_data, "stays"), (bomb, "stays"), (stalled, "stays"),
    (drip, "either"), (unread, "either"),
]

asking = threading.Thread(target=bystander)
asking.start()


def wait_answers(count, since):
    deadline = time.monotonic() + LONG
    while answered[0] < since + count and not failures:
        assert time.monotonic() < deadline, f"only {answered[0] - since} answers for others"
        time.sleep(0.01)


wait_answers(200, 0)
for pid in pids:
    forget_peak(pid)
before = [resident(pid) for pid in pids]
for attack, expected in ATTACKS:
    since = answered[0]
    attackers = [begin() for _ in range(2)]
    for speaker in attackers:
        try:
            attack(speaker)
        except Exception as error:  # noqa: BLE001
            failures.append(f"{attack.__name__}: {type(error).__name__}: {error}; {speaker.told()}")
    # While they are all there.
    wait_answers(20, since)
    for speaker in attackers:
        if expected == "calm" and not failures:
            speaker.until("end", lambda: speaker.over)
            if speaker.goaways() != ["ENHANCE_YOUR_CALM"]:
                failures.append(f"{attack.__name__}: {speaker.told()}")
        elif expected == "stays" and (speaker.goaways() or speaker.over):
            failures.append(f"{attack.__name__}: {speaker.told()}")
        speaker.sock.close()
    grown = [resident(pid, "VmHWM") - size for pid, size in zip(pids, before)]
    print(f"{attack.__name__}: {answered[0] - since} answers for others, {max(grown):.1f} MiB more at most")
    if max(grown) > most:
        failures.append(f"{attack.__name__}: {grown} MiB more")
    if failures:
        break
over.set()
asking.join()
for line in failures:
    print(line)
print(f"{len(ATTACKS)} attacks, {len(failures)} failures")
sys.exit(1 if failures else 0)
