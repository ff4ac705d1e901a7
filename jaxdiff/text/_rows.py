"""What one row of a corpus means: a text or a chat, with labels if it has them."""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxdiff.errors import JaxdiffError

CHAT_COLUMNS = ("messages", "conversation", "conversations")
TEXT_COLUMNS = ("text",)


def find_column(names: Iterable[str], column: str | None, *, where: object) -> str:
    """Returns the column that holds the documents.

    Without a wish, a chat column is taken before a text column, because chats know their roles.

    Args:
        names: Columns that there are.
        column: The column asked for; None finds it by name.
        where: Place for the error.

    Raises:
        JaxdiffError: If the column is missing, or none has a known name.
    """
    names = tuple(names)
    wanted = CHAT_COLUMNS + TEXT_COLUMNS if column is None else (column,)
    for name in wanted:
        if name in names:
            return name
    have = ", ".join(names) or "none"
    if column is not None:
        raise JaxdiffError(
            f"there is no column {column!r}; there are: {have}",
            where=where,
            fix="set the source's column to one of them",
        )
    raise JaxdiffError(
        f"no column is named {', '.join(wanted[:-1])} or {wanted[-1]}; there are: {have}",
        where=where,
        fix="name the column with the text or the chat in the source's `column`",
    )


def to_document(row: Mapping[str, Any], column: str | None, *, where: str) -> dict[str, Any]:
    """Turns a row into a document.

    A string is a text, a list is a chat, and null is an empty text.

    Args:
        row: Values by column name.
        column: The column with the document; None finds it by name.
        where: Place of the row, which becomes the document's `name`.

    Returns:
        `{"name", "text"}` or `{"name", "messages"}`, with `"labels"` if the row has any.

    Raises:
        JaxdiffError: If the row holds neither a text nor a chat.
    """
    column = find_column(row, column, where=where)
    value = row[column]
    document: dict[str, Any] = {"name": where}
    if value is None or isinstance(value, str):
        document["text"] = value or ""
    elif isinstance(value, list | tuple):
        document["messages"] = [_message(item, column, where) for item in value]
    else:
        raise JaxdiffError(
            f"{column!r} should be a string or a list of messages, it {_kind(value)}",
            where=where,
        )
    if row.get("labels") is not None:
        document["labels"] = row["labels"]
    return document


def _message(item: Any, column: str, where: str) -> dict[str, str]:
    if not isinstance(item, Mapping) or not isinstance(item.get("role"), str):
        found = f"has {', '.join(map(str, item))}" if isinstance(item, Mapping) else _kind(item)
        raise JaxdiffError(
            f"a message in {column!r} needs role and content, this one {found}", where=where
        )
    content = item.get("content")
    if not isinstance(content, str):
        raise JaxdiffError(
            f"the content of a message in {column!r} should be a string, it {_kind(content)}",
            where=where,
        )
    return {"role": item["role"], "content": content}


def _kind(value: Any) -> str:
    return "is null" if value is None else f"is of type {type(value).__name__}"
