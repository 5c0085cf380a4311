"""Alerts without their text: what is kept instead, and who can make anything of it.

An operator who may not keep what people write can keep hashes. They are keyed (HMAC-SHA256, RFC 2104): a bare hash of a
short text is as good as the text, since whoever has the journal can try out guesses; and a salt kept in the record, as
for passwords, only makes that slower. The key lies in a file of its own beside the journal, is never written into it
and never sent to a database. Whoever has both key and text can prove that the alert was about that text; once the
key is destroyed, the hashes say nothing any more. The alert's id goes into each hash, so that equal texts can't be
told by equal hashes.
"""

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from monitors.alert_record import AlertRecord, HashedText, KeptText, plain
from monitors.canonical_json import canonical
from monitors.errors import JournalError, Problem
from monitors.synced_folder import sync_folder

_NUM_BYTES = 32
_KEY_ID_DIGITS = 16


class TextKey:
    """A secret to hash texts with."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != _NUM_BYTES:
            raise JournalError(Problem("text key", f"{_NUM_BYTES} bytes", f"{len(secret)}"))
        self._secret = secret
        self.id = hashlib.sha256(secret).hexdigest()[:_KEY_ID_DIGITS]
        """Tells keys apart, and says nothing of them."""

    @classmethod
    def load_or_make(cls, path: Path) -> "TextKey":
        """The key in a file of hex digits, which is made if there is none, for its owner alone to read.

        It is there whole or not at all: half a key would keep a server from starting ever again, and one that a power
        cut took would leave hashes behind that nobody can say anything of.
        """
        if not path.exists():
            _make(path, secrets.token_hex(_NUM_BYTES) + "\n")
        return cls.load(path)

    @classmethod
    def load(cls, path: Path) -> "TextKey":
        """The key in a file. JournalError if it holds none."""
        try:
            return cls(bytes.fromhex(path.read_text("ascii").strip()))
        except (ValueError, JournalError):
            wanted = f"{2 * _NUM_BYTES} hex digits"
            raise JournalError(Problem("text key", wanted, "something else"), where=str(path)) from None

    def hide(self, alert: AlertRecord) -> AlertRecord:
        """The alert with hashes for its text."""
        if not isinstance(alert.text, KeptText):
            return alert
        text = alert.text
        hashed = HashedText(
            key_id=self.id,
            messages_hmac=self.digest(alert.id, "messages", [plain(message) for message in text.messages]),
            span_hmac=self.digest(alert.id, "span", text.span),
            prompt_ids_hmac=self.digest(alert.id, "prompt_ids", text.prompt_ids),
            reply_ids_hmac=self.digest(alert.id, "reply_ids", text.reply_ids),
            num_prompt_tokens=len(text.prompt_ids),
            num_reply_tokens=len(text.reply_ids),
        )
        return alert.model_copy(update={"text": hashed})

    def digest(self, alert_id: str, field: str, value: Any) -> str:
        """HMAC of the canonical JSON of `[alert id, field, value]`: what each of `HashedText`'s hashes is."""
        data = canonical([alert_id, field, value]).encode("utf-8")
        return hmac.new(self._secret, data, hashlib.sha256).hexdigest()

    def fits(self, alert: AlertRecord, text: KeptText) -> bool:
        """Whether the alert, its text hidden with this key, was about that text."""
        if not isinstance(alert.text, HashedText) or alert.text.key_id != self.id:
            return False
        shown = self.hide(alert.model_copy(update={"text": text})).text
        return shown == alert.text


def _make(path: Path, text: str) -> None:
    """Writes a file that only its owner may read, if there is none by then."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process was faster: its key is the one
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path)
