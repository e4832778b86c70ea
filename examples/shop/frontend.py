"""What people see: a page with the goods, and a button that buys.

Open http://127.0.0.1:18080 while the shop runs.
"""

import json
import os
import urllib.error
import urllib.request

from web import Refused, host, serve

CHECKOUT = os.environ.get("CHECKOUT_URL", f"http://{host('checkout')}:8080")

PAGE = """<!doctype html><title>The little shop</title>
<style>body{{font:16px system-ui;max-width:36em;margin:3em auto}}td{{padding:.2em 1em}}</style>
<h1>The little shop</h1><table>{rows}</table><p id=said></p>
<script>
async function buy(item) {{
  const answer = await fetch("/buy", {{method: "POST", body: JSON.stringify({{item, count: 1}})}});
  document.getElementById("said").textContent = JSON.stringify(await answer.json());
}}
</script>"""
ROW = "<tr><td>{item}<td>{count} left<td>{price} ¢<td><button onclick=\"buy('{item}')\">Buy</button>"


def call(path, body=None):
    """Calls the checkout; its refusals are passed on with their status."""
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(CHECKOUT + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        reason = error.headers.get("x-outrider-reason")
        text = error.read(4096).decode(errors="replace").strip()
        raise Refused(error.code, f"{reason}: {text}" if reason else text) from error


def page(_):
    goods = call("/goods")
    return PAGE.format(rows="".join(ROW.format(item=item, **good) for item, good in goods.items()))


serve("frontend", 18080, {
    ("GET", "/"): page,
    ("GET", "/goods"): lambda _: call("/goods"),
    ("POST", "/buy"): lambda order: call("/orders", order),
    ("GET", "/healthz"): lambda _: {"ok": True},
})
