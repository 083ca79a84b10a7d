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

"""The words of documentation, option help, messages and docstrings.

Readers are operators whose second language is English. Words that stand for a
name, or that have no one meaning, make them guess.
"""

import ast
from collections.abc import Iterator
import glob
import os
import re

from oslotest import base

_TOP = os.path.join(os.path.dirname(__file__), *[os.pardir] * 3)
_PAGES = ('README.rst', 'CONTRIBUTING.rst', 'SECURITY.md',
          'devstack/README.rst', 'doc/source/**/*.rst')

_RULES = {
    r'that one': 'the name of what is meant',
    r'who(?:m|so)?ever': 'who it is',
    r'somebody|someone': 'who it is: an operator, a tenant, a program',
    r'for ever': 'without end, permanently',
    r'but for': 'except',
    r'there(?:of|by|upon|with)|where(?:by|upon)|here(?:of|by)': 'plain words',
    r'lest|hitherto|henceforth|albeit|whilst|amongst|ere': 'plain words',
    r'utili[sz]e[sd]?': 'use',
    r'in order to': 'to',
    r'prior to': 'before',
    r'via': 'by, through',
    r'e\.g\.|i\.e\.|etc\.': 'for example, that is, and others',
    r'simply|obviously|of course': 'nothing: leave it out',
    r'mend(?:s|ed|ing)?': 'repair, correct',
    r'anew|afresh': 'again',
    r'beforehand': 'before, in advance',
    r'for certain': 'certainly',
    r'at one stroke': 'in one request',
    r'all the same': 'anyway',
    r'told apart|tells? (?:them|both|these) apart': 'distinguish',
    r'(?:writes?|wrote|written|writing) down': 'record, save',
    r'what (?:becomes|became|will become) of': 'what happens to',
    r'ever more': 'more and more',
    r'held against': 'compared with',
    r'of no importance': 'not relevant',
    r'st(?:ands?|ood) still': 'is paused, hangs',
    # On a host, or on and on?
    r'runs? on(?=[.,;:])': 'keep running',
    r'heed(?:s|ed|ing)?': 'obey, ignore',
    r'go(?:es)? by': 'use, follow',
    r'(?:do|does|go|goes) without': 'lack, not use',
    r'(?:take|takes|taken|taking|took) away': 'remove',
    r'for want of': 'for lack of',
    r'without a word': 'silently',
    r'nonsense': 'invalid data',
    r'(?<!there )is no (?:JSON|XML|UTF-8|UUID|(?:regular )?file|object|number|'
    r'integer|option)': 'is not a',
    r'keeps? \w+ from': 'prevent',
    r'let alone|so to speak|as it were|by and large': 'plain words',
}
_WORDS = re.compile('|'.join(
    rf'(?P<r{number}>(?<![\w/.-])(?:{rule})(?![\w/-]))'
    for number, rule in enumerate(_RULES)), re.IGNORECASE)
# What a program, a file or a standard has written.
_QUOTED = re.compile(r'``.*?``|`[^`\n]+`|"[^"\n]*"', re.DOTALL)
_LITERAL = re.compile(
    r'^( *)(?:\.\. code-block::.*|.*::)\n(?:\1 +.*\n| *\n)+', re.MULTILINE)


def _found(text: str) -> Iterator[str]:
    text = _QUOTED.sub(' ', _LITERAL.sub('\n', text))
    for match in _WORDS.finditer(re.sub(r'\s+', ' ', text)):
        number = int((match.lastgroup or '')[1:])
        yield (f'{match[0]!r}: say {list(_RULES.values())[number]} '
               f'(... {match.string[max(0, match.start() - 40):match.end()]})')


class PlainWordsTestCase(base.BaseTestCase):

    def test_rules_find(self):
        for text in ('ask that one.', 'Whoever asks', 'it waits for ever,',
                     'all but for\n  two', 'Utilise it', 'mend the\n  host',
                     'It runs on.', 'tried anew', 'It is no JSON: x',
                     'what becomes of it'):
            self.assertEqual(1, len(list(_found(text))), text)
        for text in ('``that one``', 'ever', 'a forever loop', 'via-x',
                     'recommended', 'runs on a host', 'take it',
                     'x::\n\n   that one\n\nend'):
            self.assertEqual([], list(_found(text)), text)

    def test_pages(self):
        wrong = []
        for pattern in _PAGES:
            for path in glob.glob(os.path.join(_TOP, pattern),
                                  recursive=True):
                with open(path) as f:
                    wrong += [f'{os.path.relpath(path, _TOP)}: {found}'
                              for found in _found(f.read())]
        self.assertEqual([], wrong)

    def test_strings_of_the_package(self):
        """Docstrings, option help and messages."""
        wrong = []
        for path in glob.glob(os.path.join(_TOP, 'nova_kvm_ext/**/*.py'),
                              recursive=True):
            name = os.path.relpath(path, _TOP)
            # What libvirt and QEMU have said is theirs.
            if name.startswith(('nova_kvm_ext/tests/',
                                'nova_kvm_ext/known_errors/')):
                continue
            with open(path) as f:
                tree = ast.parse(f.read())
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and (
                        isinstance(node.value, str)):
                    wrong += [f'{name}:{node.lineno}: {found}'
                              for found in _found(node.value)]
        self.assertEqual([], wrong)
