"""The procedural world's rooms: furnished, scanned, photographed and spoken of."""

from .dataset import WorldRooms
from .furniture import CLASS_NAMES
from .generate import SEMANTICS, make_room, make_rooms
from .pictures import make_pictures

__all__ = ["CLASS_NAMES", "SEMANTICS", "WorldRooms", "make_pictures", "make_room", "make_rooms"]
