"""Privacy: what is left out of requests before they reach the disk, as far as the settings ask for it.

Off by default. With it, byte-for-byte storage no longer holds for what docs/requests.md lists, and only for that.
"""

import ctypes
import resource

from kanalony.collector.anonymization import AddressKeys, dropping, hashing, truncating
from kanalony.collector.counts import Counts
from kanalony.collector.intake import Append
from kanalony.collector.redaction import REPLACEMENT, redacting
from kanalony.core.querystring import bare_name
from kanalony.core.redact import Redactor
from kanalony.segments.directory import DataDirectory
from kanalony.settings.serving import ServeSettings

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def forbid_core_dumps() -> None:
    """Keeps the memory of this process off the disk: it holds addresses and parameters before they are replaced.

    The limit covers core files. A core_pattern that pipes to a program ignores the limit; it dumps no process that is
    not dumpable.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def private(append: Append, data: DataDirectory, settings: ServeSettings, counts: Counts) -> Append:
    """Wraps `append` so that it stores nothing that the settings leave out.

    Also deletes address keys of past days, whatever the settings.

    Args:
        append: Stores a request.
        data: Where the keys of hashed addresses are.
        settings: `redact`, `anonymize_ip` and `max_body` decide.
        counts: Counts the bodies that are not stored whole.
    """
    if settings.redact:
        redactor = Redactor((bare_name(name) for name in settings.redact), REPLACEMENT)
        append = redacting(append, redactor, settings.max_body, counts)
    keys = AddressKeys(data.address_keys)
    if settings.anonymize_ip == "truncate":
        append = truncating(append)
    elif settings.anonymize_ip == "hmac":
        append = hashing(append, keys)
    elif settings.anonymize_ip == "drop":
        append = dropping(append)
    return append
