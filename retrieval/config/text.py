"""Text of settings: strict YAML, `section.key=value` overrides, flat names, one-line errors.

Settings need a part of YAML only: mappings, lists, words and decimal numbers, without tags and
dates. A file may come from anyone, so its size, its depth and the expansion of its aliases are
limited during parsing.
"""

import difflib
import re
import reprlib
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from retrieval.base.errors import UserError

MAX_BYTES = 2**20  # of a YAML file; the longest of configs/ has 2 kB
MAX_DEPTH = 20  # of nested lists and mappings; settings have 4
MAX_VALUES = 10_000  # keys, values and list elements, with aliases expanded
MAX_DIGITS = 300  # about as many as the largest float has
MAX_ERRORS = 10  # in one message
SHORT = reprlib.Repr()  # of values in errors
SHORT.maxstring = SHORT.maxother = 100


class _Loader(yaml.SafeLoader):
    """Safe YAML with limits.

    A duplicate key is an error: PyYAML would silently use the last value.
    """

    yaml_implicit_resolvers = {
        first: [pair for pair in resolvers if not pair[0].endswith((":timestamp", ":int"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str):
        super().__init__(text)
        self.depth = self.num_values = 0
        # id of a finished node -> values in it, with aliases expanded
        self.size_of: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event, problem = self.peek_event(), None
        before = self.num_values
        size = 1
        if isinstance(event, yaml.AliasEvent) and event.anchor in self.anchors:
            size = self.size_of.get(id(self.anchors[event.anchor]))
        self.num_values += size or 0
        self.depth += 1
        if getattr(event, "tag", None) not in (None, "!"):
            problem = f"the tag {event.tag[:80]} is not supported: write the value without it"
        elif size is None:
            problem = (
                f"the alias *{event.anchor[:80]} refers to a value that contains it: write the"
                " value out"
            )
        elif self.num_values > MAX_VALUES:
            problem = f"more than {MAX_VALUES:,} values with aliases expanded"
        elif self.depth > MAX_DEPTH:
            problem = f"lists and sections are nested more than {MAX_DEPTH} deep"
        if problem:
            raise Refused(None, None, problem, event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        self.size_of.setdefault(id(node), self.num_values - before)
        return node

    def construct_scalar(self, node: yaml.Node) -> str:
        text = super().construct_scalar(node)
        if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in text):
            problem = "a null byte or half a surrogate pair, which no path and no text can hold"
            raise Refused(None, None, problem, node.start_mark)
        return text

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value} is set twice", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        digits = self.construct_scalar(node).replace("_", "")
        if len(digits) > MAX_DIGITS:
            problem = f"a number of {len(digits)} digits, at most {MAX_DIGITS} are allowed"
            raise Refused(None, None, problem, node.start_mark)
        return int(digits)


# Decimal only: YAML 1.1 would read 010 as 8 and 1:30 as 90. Dates are not among the resolvers:
# train.output=2026-01-01 is a name.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9_]*)$", re.ASCII), list("-+0123456789")
)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


class Refused(yaml.MarkedYAMLError):
    """Valid YAML that settings do not support."""


def read_yaml(text: str) -> Any:
    """Return the settings in `text`, with aliases expanded to copies. Raises yaml.YAMLError."""
    return _unshared(yaml.load(text, Loader=_Loader))


def _unshared(value: Any) -> Any:
    """Copy `value` with aliases expanded: an override changes one place only."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def read_yaml_file(path: Path, name: str) -> Any:
    """Return the settings in a YAML file.

    Args:
        path: The file.
        name: Its name in messages, such as "config runs/a.yaml".

    Raises:
        UserError: It cannot be read, or is no YAML of settings.
        FileNotFoundError: It is absent.
    """
    try:
        if not path.is_file() and path.exists():  # a pipe or a device may never end
            kind = "a folder" if path.is_dir() else "not a regular file"
            raise UserError(f"{name} is {kind}: give a YAML file")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise UserError(
                f"{name} is larger than {MAX_BYTES // 1024} kB: is it a YAML file of settings?"
            )
        return read_yaml(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} cannot be read: it is not UTF-8 (byte {error.start}); is it a YAML file? save"
            " it as UTF-8"
        ) from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from None
    except Refused as error:
        raise UserError(f"{name}: {_with_place(error)}") from None
    except yaml.YAMLError as error:
        reason = shortened(" ".join(str(error).split()), 300)
        raise UserError(f"{name} is not valid YAML: {reason}") from None


def _with_place(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


def shortened(text: str, longest: int = 100) -> str:
    """Return `text`, cut to `longest` characters."""
    return text if len(text) <= longest else f"{text[:longest]}..."


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level of `section.key` names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def apply_override(settings: dict[str, Any], override: str) -> None:
    """Apply `section.key=value` to nested `settings`. Raises UserError."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(
            f"override {shortened(override)!r} is not of the form section.key=value, for example"
            " train.epochs=5"
        )
    *sections, key = name.split(".")
    if len(sections) > MAX_DEPTH:
        raise UserError(
            f"override {shortened(override)!r} names a section {len(sections)} levels deep, at most"
            f" {MAX_DEPTH} are allowed"
        )
    try:
        value = read_yaml(text) if text else ""
    except Refused as error:
        raise UserError(f"override {shortened(override)!r}: {_with_place(error)}") from None
    except yaml.YAMLError:
        value = text
    for section in sections:
        if settings.get(section) is None:
            settings[section] = {}
        settings = settings[section]
        if not isinstance(settings, dict):
            raise UserError(
                f"override {shortened(override)!r}: {section} is a setting, not a section"
            )
    settings[key] = value


def explain(errors: list[Any], config: type[BaseModel]) -> str:
    """Return the errors of a pydantic ValidationError of `config` as one line."""
    more = f"; and {len(errors) - MAX_ERRORS:,} more" if len(errors) > MAX_ERRORS else ""
    return "; ".join(_explain_one(error, config) for error in errors[:MAX_ERRORS]) + more


def _section_of(annotation: Any) -> type[BaseModel]:
    """Return the section that a field holds, also an optional one (`LoraConfig | None`)."""
    return next(kind for kind in get_args(annotation) or [annotation] if kind is not NoneType)


def _explain_one(error: Any, config: type[BaseModel]) -> str:
    location = [shortened(str(part)) for part in error["loc"]]
    name = ".".join(location) or "config"
    if error["type"] == "extra_forbidden":
        *sections, key = location
        section = config
        for part in sections:
            section = _section_of(section.model_fields[part].annotation)
        if near := difflib.get_close_matches(key, section.model_fields, n=1, cutoff=0.5):
            return f"{name} is not a setting; did you mean {'.'.join([*sections, near[0]])}?"
        names = list(flatten(config().model_dump()))
        by_key = {full.split(".")[-1]: full for full in reversed(names)}
        if near := difflib.get_close_matches(key, by_key, n=1, cutoff=0.75):
            return f"{name} is not a setting; did you mean {by_key[near[0]]}?"
        parent = ".".join(sections) or "the top level"
        return f"{name} is not a setting; {parent} holds: {', '.join(section.model_fields)}"
    if error["type"] == "model_type":
        return (
            f"{name}={SHORT.repr(error['input'])}: {name} is a section with settings of its own,"
            " not a value"
        )
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{name}: {message}" if location else message
    return f"{name}={SHORT.repr(error['input'])}: {message[0].lower()}{message[1:]}"
