"""Every case of servers: asks liar.py for it through the proxies. Arguments: target, authority, file of cases."""
import json
import sys
import time

from language import LONG, PREFACE, Speaker, cases, connect, frame, settings

target, authority, file = sys.argv[1:]


class Caller:
    """A connection to the proxy."""

    def __init__(self):
        self.speaker = Speaker(connect(target), 0, authority)
        # No response takes the room of the next.
        self.speaker.send(PREFACE + settings() + frame(8, 0, 0, (1 << 24).to_bytes(4, "big")))

    def ask(self, path, number=None, method="get"):
        """Statuses, body, and how it ended."""
        speaker, stream = self.speaker, self.speaker.highest + 2
        speaker.number = number or 0
        change = {"head": ":method=HEAD", "post": ":method=POST +content-length=0", "open": ":method=POST"}.get(method, "")
        flags = "EH" if method == "open" else "ES+EH"
        speaker.step(f"HEADERS N {flags} get :path={path} {'' if number else '-x-case'} {change}")
        speaker.until("an answer", lambda: speaker.ended(stream) or stream in dict(speaker.resets()))
        assert not speaker.over, "the caller's connection is over: " + speaker.told()
        fields = [dict(f.fields) for f in speaker.heard if f.stream_id == stream and hasattr(f, "fields")]
        connection = next((f[b"x-connection"] for f in fields if b"x-connection" in f), None)
        end = "whole" if speaker.ended(stream) else dict(speaker.resets())[stream]
        return speaker.statuses(stream), speaker.body(stream), end, connection


def holds(expected, answer, verdict):
    what, *rest = expected.split()
    statuses, _, end, _ = answer
    if what == "connection":
        return verdict["over"] and verdict["goaways"][-1:] == [rest[0]]
    if what == "closed":
        return verdict["over"]
    if what == "stream":
        return rest[0] in verdict["resets"] and not verdict["over"]
    if what == "fine":
        return not verdict["resets"] and not verdict["goaways"] and not verdict["over"]
    if what == "pongs":
        return verdict["pongs"] == rest
    if what == "caller":
        if rest[0] == "broken":
            return len(statuses) > 0 and end not in ("whole", "NO_ERROR")
        if rest[0] == "reset":
            return not statuses and end == rest[1]
        return " ".join(map(str, statuses)) == " ".join(rest) and end == "whole"
    raise ValueError(expected)


def run(number, steps, ways):
    caller = Caller()
    method = steps[0] if steps[0] in ("head", "post", "open") else "get"
    if "begin" in steps:
        # The proxies have one connection to the server for this one: the next is another.
        assert caller.ask(f"/begin/{number}")[1] == b"ok"
    answer = caller.ask("/", number, method)
    deadline = time.monotonic() + LONG
    verdict = None
    while verdict is None:
        probe = Caller()
        statuses, body, _, _ = probe.ask(f"/verdict/{number}")
        probe.speaker.sock.close()
        verdict = json.loads(body) if statuses == [200] else None
        assert time.monotonic() < deadline, "no verdict"
    # The next request is answered, by the same connection if that was not to end.
    statuses, body, end, connection = caller.ask("/")
    caller.speaker.sock.close()
    if statuses != [200] or body != b"ok":
        return f"the next request: {statuses} {body!r} {end}"
    if not verdict["over"] and not verdict["goaways"] and connection != str(verdict["connection"]).encode() \
            and not any("GOAWAY" in step or "3=0" in step for step in steps):
        return "the connection is not used any more"
    if any(all(holds(part, answer, verdict) for part in way) for way in ways):
        return None
    return f"the caller got {answer[0]} {answer[2]}, the server {verdict}"


failures, count = [], 0
for number, (name, steps, ways) in enumerate(cases(file), 1):
    count += 1
    try:
        why = run(number, steps, ways)
    except Exception as error:  # noqa: BLE001
        why = f"{type(error).__name__}: {error}"
    if why:
        failures.append(f"{name}: {why}")
for line in failures:
    print(line)
print(f"{count} cases, {len(failures)} failures")
sys.exit(1 if failures else 0)
