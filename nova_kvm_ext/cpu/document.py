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

"""Parses XML from outside: libvirt's answers, and files.

Limited in size, without entities, network and document types. Pure: takes
text, never opens a file.
"""

from collections.abc import Sequence
import re

from lxml import etree

from nova_kvm_ext import errors

# libvirt 11 writes 144 KB of domain capabilities for an x86 host on which
# most models are unusable; a domain with hundreds of devices is smaller.
MAX_BYTES = 4 << 20

# Models, features and vendors of libvirt's CPU map, on every architecture:
# Skylake-Server-v3, sse4.1, svme-addr-chk, lahf_lm, z14.2-base,
# ThunderX2 99xx, Zhaoxin CentaurHauls.
_WORD = r'[A-Za-z0-9_][A-Za-z0-9._+:()/-]*'
_NAME = re.compile(rf'{_WORD}(?: {_WORD})*')
_LONGEST_NAME = 64


def parse(text: str | bytes, what: str) -> etree._Element:
    """The root element.

    :param what: what the text is, for the error
    :raises errors.HostError: it is not XML, too long, or has a document type
    """
    raw = text.encode(errors='replace') if isinstance(text, str) else text
    if len(raw) > MAX_BYTES:
        raise errors.HostError(
            f'{what} is longer than {MAX_BYTES >> 20} MiB.',
            'That is not XML about a CPU.')
    # Text of Python's has been decoded already, whatever it says of itself.
    parser = etree.XMLParser(
        encoding='utf-8' if isinstance(text, str) else None,
        resolve_entities=False, no_network=True, remove_comments=True,
        remove_pis=True)
    try:
        root = etree.fromstring(raw, parser)
    except (etree.XMLSyntaxError, ValueError, LookupError) as e:
        raise errors.HostError(
            f'{what} is not XML: {errors.clean(e)}.',
            'See whether it is complete and is what it should be.') from e
    if root is None or root.getroottree().docinfo.internalDTD is not None:
        raise errors.HostError(
            f'{what} has a document type, which XML of libvirt never has.',
            'Use the XML as libvirt gave it.')
    return root


def expect(root: etree._Element, tags: Sequence[str], what: str) -> None:
    """Insist on what the document is.

    :raises errors.HostError: its root element is none of these
    """
    if root.tag not in tags:
        raise errors.HostError(
            f'{what} is a <{errors.clean(root.tag, 40)}>.',
            f'It should be a {" or ".join(f"<{tag}>" for tag in tags)}, as '
            f'libvirt gives it.')


def name(text: str | None) -> str | None:
    """The name of a model, feature or vendor; None for what can be none."""
    stripped = (text or '').strip()
    if len(stripped) > _LONGEST_NAME or _NAME.fullmatch(stripped) is None:
        return None
    return stripped


def odd(kind: str, text: str | None) -> str:
    """How a log names what was left out of a document."""
    return f'the {kind} {errors.clean(text or "", 80)!r}'
