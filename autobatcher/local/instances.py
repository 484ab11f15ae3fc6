"""Instances of JSON schemas: what the built-in model fills structured outputs and tool calls with."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any


def instance(schema: Any, text: str) -> Any:
    """Something that satisfies a JSON schema; free strings in it come from `text`."""
    try:
        return _Instances(schema, text).make(schema, frozenset())
    except _UnsatisfiableError:
        return {}


_FORMATS = {
    "date": "2024-01-02",
    "date-time": "2024-01-02T03:04:05Z",
    "time": "03:04:05Z",
    "duration": "P1D",
    "email": "user@example.com",
    "hostname": "example.com",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_KINDS = {
    "object": ("properties", "required", "additionalProperties", "minProperties"),
    "array": ("items", "prefixItems", "minItems", "uniqueItems"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
_LOWER = frozenset({"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"})
_UPPER = frozenset({"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"})
_MANY_REFERENCES = 6
_MANY_STEPS = 2_000
_MOST_STEPS = 20_000


class _UnsatisfiableError(ValueError):
    """No instance, or none that is finite."""


class _Instances:
    """Builds one instance: every property, the first alternative that has an instance, one item per array.

    A reference never stands within itself: a finite instance exists without that if one exists at all. Below
    many references, or after many steps, only what is required is built.
    """

    def __init__(self, root: Any, text: str) -> None:
        self._root = root
        self._text = text or "x"
        self._steps = 0
        self._salt = 0  # the position in an array of unique items

    def make(self, schema: Any, within: frozenset[str]) -> Any:
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise _UnsatisfiableError
        used: set[str] = set()
        flat = self._flat(schema, within, used)
        within |= used
        if "const" in flat:
            return flat["const"]
        if "enum" in flat:
            if not flat["enum"]:
                raise _UnsatisfiableError
            return flat["enum"][self._salt % len(flat["enum"])]
        for key in ("anyOf", "oneOf"):
            if flat.get(key):
                rest = {name: value for name, value in flat.items() if name != key}
                options = list(flat[key])
                if self._is_terse(within):
                    options.sort(key=lambda option: isinstance(option, dict) and "$ref" in option)
                return self._first([{"allOf": [rest, option]} for option in options], within)
        kinds = flat.get("type")
        if kinds is None:
            kinds = next(
                (kind for kind, names in _KINDS.items() if any(name in flat for name in names)), "string"
            )
        if isinstance(kinds, list):
            return self._first([{**flat, "type": kind} for kind in kinds], within)
        return self._typed(flat, kinds, within)

    def _first(self, schemas: list[dict[str, Any]], within: frozenset[str]) -> Any:
        for schema in schemas:
            try:
                return self.make(schema, within)
            except _UnsatisfiableError:  # noqa: PERF203 -- the next alternative is the point
                continue
        raise _UnsatisfiableError

    def _is_terse(self, within: frozenset[str]) -> bool:
        return len(within) > _MANY_REFERENCES or self._steps > _MANY_STEPS

    def _flat(self, schema: Any, within: frozenset[str], used: set[str]) -> dict[str, Any]:
        """The schema with its references and its allOf merged into it."""
        if schema is False:
            raise _UnsatisfiableError
        if not isinstance(schema, dict):
            return {}
        flat = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
        if "$ref" in schema:
            reference = str(schema["$ref"])
            if reference in within:
                raise _UnsatisfiableError
            used.add(reference)
            flat = _merged(self._flat(self._resolve(reference), within | {reference}, used), flat)
        for part in schema.get("allOf") or ():
            flat = _merged(flat, self._flat(part, within, used))
        return flat

    def _resolve(self, reference: str) -> Any:
        found = self._root
        for part in reference.removeprefix("#").strip("/").split("/"):
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            elif name:
                found = found.get(name) if isinstance(found, dict) else None
        return found

    def _typed(self, schema: dict[str, Any], kind: str, within: frozenset[str]) -> Any:
        if kind == "object":
            return self._object(schema, within)
        if kind == "array":
            return self._array(schema, within)
        if kind in ("integer", "number"):
            return self._number(schema, integer=kind == "integer")
        if kind == "boolean":
            return self._salt % 2 == 0
        return None if kind == "null" else self._string(schema)

    def _object(self, schema: dict[str, Any], within: frozenset[str]) -> dict[str, Any]:
        required = schema.get("required") or []
        properties = schema.get("properties") or {}
        others = schema.get("additionalProperties", True)
        most = schema.get("maxProperties")
        made: dict[str, Any] = {}
        for name in dict.fromkeys([*required, *properties]):
            needed = name in required
            if not needed and (self._is_terse(within) or (most is not None and len(made) >= most)):
                continue
            try:
                made[name] = self.make(properties.get(name, others), within)
            except _UnsatisfiableError:
                if needed:
                    raise
        for number in range(1, (schema.get("minProperties") or 0) + 1):
            if len(made) < schema["minProperties"]:
                made.setdefault(f"key{number}", self.make(others, within))
        return {name: made[name] for name in dict.fromkeys([*properties, *made]) if name in made}

    def _array(self, schema: dict[str, Any], within: frozenset[str]) -> list[Any]:
        items = schema.get("items", True)
        first = items if isinstance(items, list) else schema.get("prefixItems") or []
        if isinstance(items, list):
            items = schema.get("additionalItems", True)
        least = schema.get("minItems") or 0
        count = max(least, 0 if self._is_terse(within) else max(len(first), 1))
        count = min(count, schema.get("maxItems", count))
        made: list[Any] = []
        outer = self._salt
        try:
            for position in range(count):
                self._salt = position if schema.get("uniqueItems") else outer
                made.append(self.make(first[position] if position < len(first) else items, within))
        except _UnsatisfiableError:
            if len(made) < least:
                raise
        finally:
            self._salt = outer
        return made

    def _number(self, schema: dict[str, Any], *, integer: bool) -> float:
        step = Fraction(str(schema.get("multipleOf") or int(integer)))
        if integer:
            step = Fraction(step.numerator)  # the least whole multiple of a fraction in lowest terms
        low, above = _bound(schema, "minimum", "exclusiveMinimum", max)
        high, below = _bound(schema, "maximum", "exclusiveMaximum", min)
        wanted = Fraction(1 + self._salt)
        if step:
            if low is not None:
                least = math.floor(low / step) + 1 if above else math.ceil(low / step)
                wanted = max(wanted, Fraction(least + self._salt))
            if high is not None:
                most = math.ceil(high / step) - 1 if below else math.floor(high / step)
                wanted = min(wanted, Fraction(most))
            wanted *= step
        elif low is not None and high is not None:
            if not low < wanted < high:
                wanted = low if low == high else low + (high - low) * Fraction(self._salt + 1, self._salt + 2)
        elif low is not None and wanted <= low:
            wanted = low + 1 + self._salt
        elif high is not None and wanted >= high:
            wanted = high - 1 - self._salt
        if (low is not None and (wanted < low or (above and wanted == low))) or (
            high is not None and (wanted > high or (below and wanted == high))
        ):
            raise _UnsatisfiableError
        return int(wanted) if integer else float(wanted)

    def _string(self, schema: dict[str, Any]) -> str:
        least, most = schema.get("minLength") or 0, schema.get("maxLength")
        text = f"{self._salt} {self._text}" if self._salt else self._text
        text = text.ljust(least, "x")[:most]
        pattern = schema.get("pattern")
        if isinstance(pattern, str):
            return _matching(pattern, text, least, most)
        return _FORMATS.get(schema.get("format", ""), text)


def _merged(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """The schema that asks for what both ask for."""
    merged = {**one, **two}
    for key in one.keys() & two.keys():
        a, b = one[key], two[key]
        if key == "properties":
            merged[key] = {
                **a,
                **{name: {"allOf": [a[name], b[name]]} if name in a else b[name] for name in b},
            }
        elif key == "required":
            merged[key] = [*dict.fromkeys([*a, *b])]
        elif key in ("anyOf", "oneOf"):
            merged[key] = [{"allOf": [x, y]} for x in a for y in b]
        elif key in ("items", "additionalProperties") and a != b:
            merged[key] = {"allOf": [a, b]}
        elif key == "enum":
            merged[key] = [value for value in a if value in b]
        elif key == "type":
            merged[key] = _common_type(a, b)
        elif key in _LOWER:
            merged[key] = max(a, b)
        elif key in _UPPER:
            merged[key] = min(a, b)
    return merged


def _common_type(one: Any, two: Any) -> Any:
    a, b = ([kinds] if isinstance(kinds, str) else kinds for kinds in (one, two))
    common = [kind for kind in a if kind in b or (kind == "integer" and "number" in b)]
    common += [kind for kind in b if kind == "integer" and "number" in a and kind not in common]
    if not common:
        raise _UnsatisfiableError
    return common[0] if len(common) == 1 else common


def _bound(
    schema: dict[str, Any], inclusive: str, exclusive: str, tighter: Any
) -> tuple[Fraction | None, bool]:
    """A bound on a number, and whether the bound itself is outside."""
    at, beyond = (
        None if schema.get(name) is None else Fraction(str(schema[name])) for name in (inclusive, exclusive)
    )
    if at is None or beyond is None:
        return (at, False) if beyond is None else (beyond, True)
    return tighter(at, beyond), tighter(at, beyond) == beyond


_ALPHABET = "a0A-_ .@/" + "".join(map(chr, range(33, 127))) + "\n\té"
_REPEATED = re.compile(r"\{(\d+)(?:(,)(\d*))?\}[?+]?")
_GROUP = re.compile(r"\(\?(?::|P?<\w+>|(?P<around><?[=!]))")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)", re.DOTALL)


def _matching(pattern: str, text: str, least: int, most: int | None) -> str:
    """The text, or a word of it, or else something made from the pattern, with `least` to `most` characters.

    The text itself if nothing of that matches the pattern.
    """
    try:
        compiled = re.compile(pattern)
        words = text.split()
        made = (_Pattern(pattern, more).text() for more in sorted({0, 1, 2, 4, 8, 16, 32, least}))
        for group in ([text[:256]], words[:16], made):
            for candidate in group:
                if least <= len(candidate) <= (len(candidate) if most is None else most) and compiled.search(
                    candidate
                ):
                    return candidate
    except (re.error, IndexError, OverflowError):  # no pattern of Python's, or one beyond the generator
        pass
    return text


class _Pattern:
    """Makes a text from a pattern: first alternatives, each repetition `more` times beyond what it must."""

    def __init__(self, source: str, more: int) -> None:
        self._source = source
        self._more = more
        self._at = 0

    def text(self) -> str:
        made = self._sequence()
        while self._take("|"):
            self._sequence()
        return made

    def _take(self, text: str) -> bool:
        found = self._source.startswith(text, self._at)
        self._at += len(text) if found else 0
        return found

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._source, self._at)
        self._at = found.end() if found else self._at
        return found

    def _sequence(self) -> str:
        made = ""
        while self._at < len(self._source) and self._source[self._at] not in "|)":
            made += self._atom() * self._repetitions()
        return made

    def _repetitions(self) -> int:
        least, most = 1, 1.0
        for sign, bounds in (("*", (0, math.inf)), ("+", (1, math.inf)), ("?", (0, 1))):
            if self._take(sign):
                least, most = bounds
                if not self._take("?"):
                    self._take("+")
                break
        else:
            found = self._match(_REPEATED)
            if found is not None:
                least = int(found[1])
                most = float(found[3] or "inf") if found[2] else least
        return int(min(least + self._more, most, 1_000))

    def _atom(self) -> str:
        sign = self._source[self._at]
        if sign == "(":
            group = self._match(_GROUP)
            self._at += 0 if group else 1
            made = self.text()
            self._at += 1
            return "" if group and group["around"] else made
        if found := self._match(_CLASS):
            return next(
                char for char in _ALPHABET + str(found[0]).strip("[]^") if re.fullmatch(found[0], char)
            )
        if found := self._match(_ESCAPE):
            return next((char for char in _ALPHABET if re.fullmatch(found[0], char)), self._escaped(found[0]))
        self._at += 1
        return "" if sign in "^$" else "a" if sign == "." else sign

    @staticmethod
    def _escaped(source: str) -> str:
        code = bytes.fromhex(source[2:])  # empty but for \x.. and \u....
        return chr(int.from_bytes(code, "big")) if code else ""
