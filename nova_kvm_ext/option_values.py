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

"""The value of an option, who set it, and which of two options has priority.

Pure, except the configuration object that the caller passes.
"""

import dataclasses
import re
from typing import Any

from oslo_config import cfg

from nova_kvm_ext import errors

OURS = 'kvm_ext'
"""The group of this driver's options."""

NOVAS = 'libvirt'
"""The group of Nova's options behind them."""


def read(conf: cfg.ConfigOpts, group: str, name: str) -> Any:
    """The value of an option, a bad one refused in our own words.

    :raises errors.InvalidOption: the value is not one of the allowed ones
    """
    try:
        return conf[group][name]
    except (cfg.ConfigSourceValueError, cfg.TemplateSubstitutionError) as e:
        # oslo.config: "Value for option NAME from LocationInfo(...,
        # detail='FILE') is not valid: Valid values are [...], but found X"
        where = re.search(r"detail='([^']*)'", str(e))
        reason = str(e).partition(' is not valid: ')[2] or str(e)
        raise errors.InvalidOption(
            f'[{group}] {name}' + (f' in {where[1]}' if where else '') +
            f' cannot be used: {errors.clean(reason)}.',
            'Correct it and start the service again.') from e


def source(conf: cfg.ConfigOpts, group: str | None, name: str) -> str:
    """What gave an option its value.

    :param group: None for ``[DEFAULT]``
    :returns: the path of a file, ``the environment variable NAME`` or ``the
        command line``; '' where no operator did
    """
    location = conf.get_location(name, group)
    if location is None or not location.location.is_user_controlled:
        return ''
    if location.location is cfg.Locations.user:
        return str(location.detail)
    if location.location is cfg.Locations.environment:
        return f'the environment variable {location.detail}'
    return 'the command line'


@dataclasses.dataclass(frozen=True)
class Value:
    """An option that an operator set.

    :ivar option: its group and name, ``[libvirt] virt_type``
    :ivar value: its value as a file has it
    :ivar source: what set it, see :func:`source`
    """

    option: str
    value: str
    source: str

    def __str__(self) -> str:
        # Without an operator's word it is set_override() of a test.
        return f'{self.option} = {self.value}' + (
            f' ({self.source})' if self.source else '')


@dataclasses.dataclass(frozen=True)
class Override:
    """A value of ``[libvirt]`` that has no effect, and what counts instead.

    :ivar value: what counts, of ``[kvm_ext]``
    :ivar instead_of: what has no effect, of ``[libvirt]``
    """

    value: Value
    instead_of: Value

    def __str__(self) -> str:
        return f'{self.value} overrides {self.instead_of}'


class Pair:
    """An option of ``[kvm_ext]`` and that of ``[libvirt]`` behind it.

    :raises errors.InvalidOption: a value is not allowed
    """

    def __init__(self, conf: cfg.ConfigOpts, ours: str, novas: str) -> None:
        self._conf = conf
        self._ours, self._novas = ours, novas
        self._our_value = read(conf, OURS, ours)
        self._nova_value = read(conf, NOVAS, novas)

    @property
    def is_ours(self) -> bool:
        """Whether it is set in ``[kvm_ext]``."""
        return self._our_value is not None

    @property
    def value(self) -> Any:
        return self._our_value if self.is_ours else self._nova_value

    @property
    def option(self) -> str:
        """The option that the value is from."""
        return (f'[{OURS}] {self._ours}' if self.is_ours else
                f'[{NOVAS}] {self._novas}')

    def override(self, other: 'Pair | None' = None) -> Override | None:
        """What the option of ``[kvm_ext]`` overrides.

        :param other: another pair, whose option of ``[libvirt]`` does not go
            with this value; by default this pair's, if it is not the same
        """
        if not self.is_ours:
            return None
        theirs = other or self
        found = source(self._conf, NOVAS, theirs._novas)
        said = theirs._nova_value
        said = ', '.join(said) if isinstance(said, list) else str(said)
        if not found or (other is None and (
                self._our_value.lower() == said.lower())):
            return None
        return Override(
            Value(f'[{OURS}] {self._ours}', self._our_value,
                  source(self._conf, OURS, self._ours)),
            Value(f'[{NOVAS}] {theirs._novas}', said, found))
