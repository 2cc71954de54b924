"""What the support desk can look up. Beside Millrace this file has the name of one of its packages."""

from langchain_core.tools import tool

_ORDERS = {"1001": "shipped on Monday", "1002": "waiting for stock"}


@tool
def lookup_order(number: str) -> str:
    """Look up where an order is, by its number."""
    return _ORDERS.get(number, "no such order")


@tool
async def opening_hours(day: str) -> str:
    """Tell when the desk is open on a day of the week."""
    return "closed" if day.lower() == "sunday" else "9:00 to 18:00"


TOOLS = [lookup_order, opening_hours]
