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
a changed signature or a missing name is to be mended.
"""

import ast
import hashlib
from importlib import metadata
import inspect
import json
import sys
import textwrap
from typing import Any

import nova.tests.unit  # noqa: F401

from nova_kvm_ext import contract
from nova_kvm_ext.tests.unit import test_contract

Description = dict[str, dict[str, str]]


def _body(function: Any) -> str:
    """A hash of what a function does: no comment, no docstring, no layout."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if (isinstance(node, ast.FunctionDef | ast.ClassDef) and
                ast.get_docstring(node) is not None):
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


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
            found[path] = {'signature': str(inspect.signature(thing)),
                           'body': _body(inspect.unwrap(thing))}
        elif isinstance(thing, str | int | tuple):
            found[path] = {'value': repr(thing)[:200]}
    return found


def compare(old: Description, new: Description) -> list[str]:
    """The changes from one Nova to another, a line each."""
    lines = []
    for path in sorted((old.keys() | new.keys()) - {''}):
        if path not in new:
            lines.append(f'gone       {path}')
        elif path not in old:
            lines.append(f'new        {path}')
        else:
            for what, value in new[path].items():
                before = old[path].get(what)
                if before != value:
                    lines.append(f'{what:<10} {path}' + (
                        '' if what == 'body' else f': {before} -> {value}'))
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
