"""Between text and settings: strict YAML, `section.key=value` overrides, flat names, and errors in one line that name the nearest valid setting."""

import difflib
from typing import Any

import yaml
from pydantic import BaseModel

from retrieval.errors import UserError


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that occurs twice is an error: PyYAML would let the last one win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is set twice", key.start_mark)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """Raises yaml.YAMLError, and ValueError for a date that does not exist."""
    return yaml.load(text, Loader=_Loader)


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of `section.key` names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def apply_override(settings: dict[str, Any], override: str) -> None:
    """Set what `section.key=value` says in nested `settings`."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(f"override {override!r} is not of the form section.key=value, for example train.epochs=5")
    try:
        value = read_yaml(text) if text else ""
    except (yaml.YAMLError, ValueError):
        value = text
    *sections, key = name.split(".")
    for section in sections:
        if settings.get(section) is None:
            settings[section] = {}
        settings = settings[section]
        if not isinstance(settings, dict):
            raise UserError(f"override {override!r}: {section} is a setting, not a section")
    settings[key] = value


def explain(error: Any, config: type[BaseModel]) -> str:
    """One error of a pydantic ValidationError of `config`, in words."""
    location = [str(part) for part in error["loc"]]
    name = ".".join(location) or "config"
    if error["type"] == "extra_forbidden":
        return f"{name} is not a setting; " + _suggest(location, config)
    if error["type"] == "model_type":
        return f"{name}={error['input']!r}: {name} is a section with settings of its own, not a value"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{name}: {message}" if location else message
    return f"{name}={error['input']!r}: {message[0].lower()}{message[1:]}"


def _suggest(location: list[str], config: type[BaseModel]) -> str:
    section = config
    for part in location[:-1]:
        section = section.model_fields[part].annotation
    parent = ".".join(location[:-1])
    matches = difflib.get_close_matches(location[-1], section.model_fields, n=1, cutoff=0.5)
    if matches:
        return f"did you mean {'.'.join([*location[:-1], matches[0]])}?"
    everywhere = difflib.get_close_matches(location[-1], _all_names(config), n=1, cutoff=0.75)
    full = _all_names(config)[everywhere[0]] if everywhere else None
    return f"did you mean {full}?" if full else f"{parent or 'the top level'} holds: {', '.join(section.model_fields)}"


def _all_names(config: type[BaseModel]) -> dict[str, str]:
    return {name.split(".")[-1]: name for name in reversed(list(flatten(config().model_dump())))}
