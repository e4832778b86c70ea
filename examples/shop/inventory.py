"""Knows what is on the shelves. Sold out shelves are filled again, so that the shop never closes."""

import threading

from web import Refused, serve

LOCK = threading.Lock()
STOCK = {
    "teapot": {"count": 500, "price": 2400},
    "cup": {"count": 2000, "price": 600},
    "saucer": {"count": 2000, "price": 300},
}
SHELF = {item: good["count"] for item, good in STOCK.items()}


def stock(_):
    with LOCK:
        return {item: dict(good) for item, good in STOCK.items()}


def reserve(body):
    item, count = str(body["item"]), int(body["count"])
    with LOCK:
        good = STOCK.get(item)
        if good is None:
            raise Refused(404, f"there is no {item}")
        if not 0 < count <= 10:
            raise Refused(400, "from 1 to 10 of a kind")
        if good["count"] < count:
            print(f"{item}: sold out, filled again")
            good["count"] = SHELF[item]
        good["count"] -= count
        return {"item": item, "left": good["count"], "cents": count * good["price"]}


serve("inventory", 18082, {("GET", "/stock"): stock, ("POST", "/reserve"): reserve})
