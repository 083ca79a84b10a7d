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
"""One verdict of ours beside libvirt's, and what a list of them comes to."""

from collections.abc import Iterable
import dataclasses

AGREE, UNKNOWN, DIFFER, EXPECTED = 'agree', 'not known', 'differ', 'exception'


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What both say of the same question.

    :ivar libvirt: its version
    :ivar kind: what the question is about, such as ``cputest compare``
    :ivar name: the question itself, one of its kind and version
    :ivar ours: yes, no, or None where we cannot tell
    :ivar theirs: yes, no, or None where libvirt gives an error instead
    :ivar why: our reason
    :ivar words: libvirt's words
    """

    libvirt: str
    kind: str
    name: str
    ours: bool | None
    theirs: bool | None
    why: str = ''
    words: str = ''

    @property
    def outcome(self) -> str:
        # What libvirt does not understand does not start: a no is as good as
        # "not known", a yes is wrong.
        if self.theirs is None:
            return DIFFER if self.ours else AGREE
        if self.ours is None:
            return UNKNOWN
        return AGREE if self.ours is self.theirs else DIFFER


@dataclasses.dataclass(frozen=True)
class Exception_:
    """A difference that is meant.

    :ivar kind: of the verdict
    :ivar name: how the verdict's name begins
    :ivar reason: why we differ; it is printed
    :ivar libvirt: version of libvirt, or of any where empty
    """

    kind: str
    name: str
    reason: str
    libvirt: str = ''

    def covers(self, verdict: Verdict) -> bool:
        return (verdict.kind == self.kind and
                verdict.name.startswith(self.name) and
                self.libvirt in ('', verdict.libvirt))


def outcome(verdict: Verdict, exceptions: Iterable[Exception_]) -> str:
    """As the verdict's own, or that it differs on purpose."""
    found = verdict.outcome
    if found == DIFFER and any(e.covers(verdict) for e in exceptions):
        return EXPECTED
    return found


def unused(verdicts: Iterable[Verdict], exceptions: Iterable[Exception_]
           ) -> list[Exception_]:
    """Exceptions that no longer differ though what they are about was seen.

    They are an error, as in the list of differences of the conformance run.
    """
    seen = list(verdicts)
    return [e for e in exceptions
            if any(e.covers(v) for v in seen) and
            not any(e.covers(v) and v.outcome == DIFFER for v in seen)]
