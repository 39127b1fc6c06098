"""What adb's own complaints mean, in one line with what to do next."""

from __future__ import annotations

import re

from mobile_export.errors import MissingTool

CUT = "the connection was cut"
# In this order: a line about a lost connection may also name the file that was being written.
KNOWN = (
    (r"unauthorized|failed to authenticate", "it has not allowed this computer", "unlock it, and tap Allow where it asks"),
    (r"device (still )?(offline|connecting|authorizing)", "is offline", "plug it in again, or: adb disconnect, adb connect"),
    (r"no permissions", "this user may not open the USB device", "see the udev rules of the Android platform tools"),
    (r"device '.*' not found|no devices|device not found", "is not connected", "plug it in, or: adb connect HOST:PORT"),
    (r"No space left|not enough space", "has no room left for what is to be pushed", "free some, or remove what --keep left"),
    (r"[Ee]xec format error|not executable: .*ELF", "cannot run this program, which is for another processor", "pass --runner"),
    (r"can't execute|not executable", "does not let us run this program", "check: adb shell ls -ld /data/local/tmp"),
    (r"Permission denied|Read-only file system", "does not let us write there", "check: adb shell ls -ld /data/local/tmp"),
    (r"cannot (connect to|start) (the )?(daemon|server)|failed to (start|check) (daemon|server)", "adb's server does not start",
     "adb kill-server, and run it again"),
    (r"closed|EOF|couldn't read|failed to read|protocol fault|[Cc]onnection reset|[Bb]roken pipe", CUT,
     "check the cable or the network, and run it again"),
)  # fmt: skip


def failure(where: str, doing: str, said: str) -> MissingTool:
    """The error for what adb printed when something failed."""
    for pattern, what, then in KNOWN:
        if re.search(pattern, said):
            return MissingTool(where, f"{what} ({doing})", then)
    last = (said.strip().splitlines() or ["adb said nothing"])[-1]
    return MissingTool(where, f"{doing} failed: {last}", "run it again, and report it with --debug")
