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

"""The result of a check, and a group of checks.

Pure.
"""

from collections.abc import Callable
import dataclasses

from nova_kvm_ext.host import model

PASS, WARN, FAIL, SKIP = 'PASS', 'WARN', 'FAIL', 'SKIP'


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """What a check says.

    :ivar code: ``KVM101`` ...
    :ivar title: what was checked, a few words
    :ivar result: ``PASS``; ``WARN``, guests run but not as they could;
        ``FAIL``, no guest runs as nova.conf asks; ``SKIP``, not checked or
        not relevant here, ``details`` says why
    :ivar details: the fact found, one clean line
    :ivar remedy: the exact command that repairs it, or where no command does,
        a sentence; '' where there is nothing to repair
    :ivar fix: commands that repair it, or a part of it, and can do no harm:
        each one line of shell words without pipes or variables; they need
        root
    """

    code: str
    title: str
    result: str
    details: str
    remedy: str = ''
    fix: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Said:
    """A result without its code and title."""

    result: str
    details: str
    remedy: str = ''
    fix: tuple[str, ...] = ()


def passed(details: str) -> Said:
    return Said(PASS, details)


def warn(details: str, remedy: str = '',
         fix: tuple[str, ...] = ()) -> Said:
    return Said(WARN, details, remedy, fix)


def fail(details: str, remedy: str = '',
         fix: tuple[str, ...] = ()) -> Said:
    return Said(FAIL, details, remedy, fix)


def skip(details: str, remedy: str = '') -> Said:
    return Said(SKIP, details, remedy)


Check = Callable[[model.HostFacts], Said]


class Group:
    """The checks whose codes begin alike, in the order of the source.

    :ivar checks: code, title and function of each
    :ivar proofs: by code, what proves its FAIL
    """

    def __init__(self) -> None:
        self.checks: list[tuple[str, str, Check]] = []
        self.proofs: dict[str, str] = {}

    def check(self, code: str, title: str, *, proof: str
              ) -> Callable[[Check], Check]:
        """Add a function to the checks.

        :param proof: what proves that no guest runs as nova.conf asks, where
            the function says FAIL; '' for one that never does
        """
        def add(function: Check) -> Check:
            self.checks.append((code, title, function))
            self.proofs[code] = proof
            return function
        return add


def worst(results: list[CheckResult]) -> str:
    """FAIL if a result is that, else WARN likewise, else PASS."""
    said = {result.result for result in results}
    return FAIL if FAIL in said else WARN if WARN in said else PASS
