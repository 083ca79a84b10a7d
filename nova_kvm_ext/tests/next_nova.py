#    Licensed under the Apache License, Version 2.0 (the "License"); you may
#    not use this file except in compliance with the License. You may obtain
#    a copy of the License at
#
#         http://www.apache.org/licenses/LICENSE-2.0
#
#    Unless required by applicable law or agreed to in writing, software
#    distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
#    WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
#    License for the specific language governing permissions and limitations
#    under the License.

"""What another Nova changes of what this package relies on.

``tools/next-nova`` runs it: ``describe`` in the environment of each of two
Novas, then ``compare`` on what they wrote. One line for each change, so that
a maintainer knows the work that a new release brings before running anything
else: a changed body of a method that we override or call is to be read again,
a changed signature or a missing name is to be repaired. Annotations, comments,
docstrings and layout are no change.
"""

import ast
from collections.abc import Iterable
from collections.abc import Mapping
import difflib
from importlib import metadata
import inspect
import json
import os
import sys
import textwrap
from typing import Any

import nova.tests.unit  # noqa: F401

from nova_kvm_ext import contract
from nova_kvm_ext.tests.unit import test_contract

Description = dict[str, dict[str, Any]]

_NOVAS_PARENT = os.path.dirname(os.path.dirname(nova.__file__))


def _parameters(thing: Any) -> list[str]:
    return [str(parameter.replace(annotation=parameter.empty))
            for parameter in inspect.signature(thing).parameters.values()]


def _body(function: Any) -> list[str]:
    """The lines of what a function does."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if (isinstance(node, ast.FunctionDef | ast.ClassDef) and
                ast.get_docstring(node) is not None):
            node.body = node.body[1:] or [ast.Pass()]
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    function, = tree.body
    return [line for statement in function.body
            for line in ast.unparse(statement).splitlines()]


def _place(function: Any) -> str:
    path = os.path.relpath(inspect.getsourcefile(function) or '',
                           _NOVAS_PARENT)
    return f'{path}:{inspect.getsourcelines(function)[1]}'


def describe() -> Description:
    """Signature and body of every name of Nova's that the contract has."""
    found: Description = {'': {'nova': metadata.version('nova')}}
    overridden = {
        f'{base.__module__}:{base.__name__}.{name}'
        for ours in contract.CLASSES for base in ours.__bases__
        for name, _ in contract.overrides(ours)}
    for path in sorted({*test_contract.CALLS, *test_contract.ATTRIBUTES,
                        *test_contract.NAMES, *overridden}):
        try:
            thing = test_contract.find(path)
        except (AttributeError, ImportError):
            continue
        found[path] = {}
        if inspect.isfunction(thing) or inspect.ismethod(thing):
            inner = inspect.unwrap(thing)
            found[path] = {'takes': _parameters(thing), 'body': _body(inner),
                           'place': _place(inner)}
        elif isinstance(thing, Mapping):
            found[path] = {'is': [f'{key}={value}' for key, value in
                                  sorted(thing.items())]}
        elif isinstance(thing, str | int | tuple):
            found[path] = {'is': [repr(thing)]}
    return found


def _both_ways(old: Iterable[str], new: Iterable[str]) -> str:
    """What has come and what has gone; '' where nothing has."""
    old, new = list(old), list(new)
    added = [item for item in new if item not in old]
    dropped = [item for item in old if item not in new]
    parts = [f'{word} {", ".join(items)}' for word, items in (
        ('adds', added), ('drops', dropped)) if items]
    if not parts and old != new:
        parts = [f'has another order: {", ".join(new)}']
    return '; '.join(parts)


def _rewritten(old: list[str], new: list[str]) -> str:
    """How much of a body is another; '' for the same."""
    marks = [line[0] for line in difflib.ndiff(old, new)]
    if not {'-', '+'} & set(marks):
        return ''
    return f'+{marks.count("+")} -{marks.count("-")} of {len(old)} lines'


def compare(old: Description, new: Description) -> list[str]:
    """The changes from one Nova to another, a line each."""
    lines = []
    for path in sorted((old.keys() | new.keys()) - {''}):
        if path not in new:
            lines.append(f'gone    {path}')
            continue
        if path not in old:
            lines.append(f'new     {path}')
            continue
        before, now = old[path], new[path]
        for word, what in (('repair', 'takes'), ('look at', 'is')):
            change = _both_ways(before.get(what, ()), now.get(what, ()))
            if change:
                lines.append(f'{word:<7} {path} {change}')
        change = _rewritten(before.get('body', []), now.get('body', []))
        if change:
            lines.append(f'read    {path}: {change}; {now["place"]}')
    return lines


def main(command: str, *files: str) -> int:
    """Do one of the two.

    :param command: ``describe`` writes JSON to standard output, ``compare``
        reads it from two files
    """
    if command == 'describe':
        print(json.dumps(describe()))
        return 0
    descriptions = []
    for path in files:
        with open(path) as f:
            # Nova's tests may have printed something before.
            descriptions.append(json.loads(f.read().splitlines()[-1]))
    old, new = descriptions
    lines = compare(old, new)
    print(f'Nova {old[""]["nova"]} -> {new[""]["nova"]}: {len(lines)} changes '
          f'in {len(old.keys() | new.keys()) - 1} names that are relied on')
    print('\n'.join(lines))
    return 0


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
