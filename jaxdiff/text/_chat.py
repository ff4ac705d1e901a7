"""Rendering a chat with a tokenizer's template, and where in the result each message stands."""

import datetime
import functools
import re
from collections.abc import Iterator, Mapping, Sequence

from jaxdiff.errors import JaxdiffError
from jaxdiff.text._tokenizer import Tokenizer
from jaxdiff.types import Role

ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "human": Role.USER,
    "assistant": Role.ASSISTANT,
    "model": Role.ASSISTANT,
    # What a tool returns was written by neither side of the chat.
    "tool": Role.TEMPLATE,
    "function": Role.TEMPLATE,
    "ipython": Role.TEMPLATE,
}

# Letters from a private-use area, so that no template and no tokenizer knows them.
_MARK = re.compile("\uf8f0(\\d+)\uf8f1")
_CLOCK = re.compile(r"""strftime_now\(\s*(?:'([^']*)'|"([^"]*)")\s*\)""")
# Llama 3's own fallback for templates that write today's date.
_TODAY = datetime.date(2024, 7, 26)

Span = tuple[int, int, Role]


def render(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], *, where: str = ""
) -> tuple[str, list[Span]]:
    """Renders a chat and finds each message's content, stripped of white space, in the result.

    The template is also run on marks in place of the contents: what stands between two marks is
    the template's own text, and what stands between the same texts in the real result is content,
    also where the template trims or rewrites it. Templates that write today's date get a fixed
    date, so that the same chat gives the same tokens every day.

    Args:
        tokenizer: Tokenizer with a chat template.
        messages: `{"role", "content"}` in order.
        where: Name of the document, for errors.

    Returns:
        The text, and (start, stop, role) in characters of each content, in order of appearance.

    Raises:
        JaxdiffError: If there is no template, a role is unknown, or the template refuses the chat.
    """
    for message in messages:
        if message["role"] not in ROLES:
            raise JaxdiffError(
                f"the role {message['role']!r} is not known; known are {', '.join(ROLES)}",
                where=where,
            )
    text = _apply(tokenizer, messages, where)
    marked = [{**m, "content": f"\uf8f0{i}\uf8f1"} for i, m in enumerate(messages)]
    # Template, number, template, number, ..., template: a template may leave out or move a message.
    pieces = _MARK.split(_apply(tokenizer, marked, where))
    order = [int(number) for number in pieces[1::2]]
    return text, list(_spans(text, pieces[::2], [messages[i] for i in order], where))


def _apply(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], where: str) -> str:
    if not tokenizer.chat_template:
        raise JaxdiffError(
            "the tokenizer has no chat template, and the corpus has chats",
            where=where,
            fix="set models.tokenizer to the chat model's tokenizer",
        )
    template = _stop_clock(tokenizer.get_chat_template())
    try:
        return tokenizer.apply_chat_template(
            [dict(message) for message in messages], chat_template=template, tokenize=False
        )
    # Templates raise jinja2's errors, and whatever their own expressions run into.
    except Exception as error:
        raise JaxdiffError(
            f"the chat template refuses this chat: {error}",
            where=where,
            fix="take such chats out of the corpus, or use another tokenizer",
        ) from error


@functools.lru_cache(maxsize=16)
def _stop_clock(template: str) -> str:
    return _CLOCK.sub(lambda match: repr(_TODAY.strftime(match[1] or match[2] or "")), template)


def _spans(
    text: str, literals: Sequence[str], messages: Sequence[Mapping[str, str]], where: str
) -> Iterator[Span]:
    at = 0
    for before, after, message in zip(literals[:-1], literals[1:], messages, strict=True):
        content = message["content"]
        if text.startswith(before, at):
            start = at + len(before)
            at = _end(text, start, content, after)
        else:
            # The template's own text depends on the contents: look for the content itself.
            start = text.find(content.strip(), at)
            if start < 0:
                raise JaxdiffError(
                    f"the chat template changes the {message['role']} message "
                    f"{content[:40]!r}, so that its tokens cannot be told from the template's",
                    where=where,
                )
            at = start + len(content.strip())
        found = text[start:at]
        left, right = len(found) - len(found.lstrip()), len(found.rstrip())
        if left < right:
            yield start + left, start + right, ROLES[message["role"]]


def _end(text: str, start: int, content: str, after: str) -> int:
    """Where a content that begins at `start` ends; `after` is the template's text behind it."""
    for form in (content, content.strip(), content.lstrip(), content.rstrip()):
        end = start + len(form)
        if text.startswith(form, start) and text.startswith(after, end):
            return end
    end = text.find(after, start) if after else len(text)
    return end if end >= 0 else len(text)
