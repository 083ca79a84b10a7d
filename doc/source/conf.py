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

from typing import Any

from cliff import sphinxext
from docutils import nodes
from docutils.parsers import rst
from docutils import statemachine

from nova_kvm_ext import known_errors
from nova_kvm_ext import log_codes
from nova_kvm_ext.metrics import names

extensions = [
    'openstackdocstheme',
    'oslo_config.sphinxext',
    'cliff.sphinxext',
]

project = 'nova-kvm-ext'
copyright = 'nova-kvm-ext contributors'
master_doc = 'index'
pygments_style = 'native'

html_theme = 'openstackdocs'
# The theme's own frame says that a page is OpenStack's, and tells OpenStack's
# analytics who reads it.
templates_path = ['_templates']
html_theme_options = {
    'analytics_tracking_code': '',
    'display_badge': False,
    'root_title': 'nova-kvm-ext',
    'sidebar_search': True,
}
html_static_path = ['_static']
html_css_files = ['untested.css', 'layout.css']
openstackdocs_pdf_link = False
openstackdocs_auto_name = False

# Option names such as --image must not get a dash.
smartquotes = False

# The command in front of those that cliff.sphinxext documents, and the
# package that is no plugin of another.
autoprogram_cliff_application = 'nova-kvm-ext'
autoprogram_cliff_app_dist_name = 'nova-kvm-ext'

_format_parser = sphinxext._format_parser


def _format_with_defaults(parser: Any) -> Any:
    """Expand %(default)s, which cliff.sphinxext leaves as it is."""
    for action in parser._actions:
        if action.help:
            action.help %= dict(vars(action), prog=parser.prog)
    return _format_parser(parser)


sphinxext._format_parser = _format_with_defaults


class KnownErrors(rst.Directive):
    """The table of libvirt's known errors, from the package's own."""

    def run(self) -> list[Any]:
        lines = []
        for row in known_errors.TABLE:
            lines += [f'``{row.name}``']
            for said in row.said:
                # QEMU's own words are what follows libvirt's.
                lines += ['  .. code-block:: none', '']
                lines += [f'     {line}' for line in said.splitlines()]
                lines += ['']
            lines += [f'  {literal(row.cause)}', '',
                      f'  {literal(row.remedy)}', '',
                      f'  Seen: {row.seen}.', '']
        found = nodes.container()
        self.state.nested_parse(
            statemachine.StringList(lines, 'known_errors'), 0, found)
        return found.children


class LogMessages(rst.Directive):
    """The table of log messages, from the package's own."""

    def run(self) -> list[Any]:
        lines = []
        for row in log_codes.TABLE:
            who = ', '.join(who.value for who in row.who)
            each = ' It is said for each request.' if row.each_request else ''
            lines += [f'``{row.code}``',
                      f'  {literal(row.meaning)}{each}', '',
                      f'  *What to do:* {literal(row.remedy)}', '',
                      f'  *Who:* {who}', '']
        found = nodes.container()
        self.state.nested_parse(
            statemachine.StringList(lines, 'log_codes'), 0, found)
        return found.children


class MetricsReference(rst.Directive):
    """The reference of all metrics, from the package's own table."""

    def run(self) -> list[Any]:
        lines = []
        for metric in names.ALL:
            lines += [f'``{metric.name}`` ({metric.kind.value})',
                      f'  {literal(metric.help)}', '']
            for label, values in metric.labels.items():
                said = (literal(values[0].strip('()'))
                        if values[0].startswith('(') else
                        ', '.join(f'``{value}``' for value in values))
                lines += [f'  * ``{label}``: {said}']
            if metric.buckets:
                lines += [f'  * buckets: '
                          f'{", ".join(map(str, metric.buckets))}']
            lines += ['']
        found = nodes.container()
        self.state.nested_parse(
            statemachine.StringList(lines, 'metrics'), 0, found)
        return found.children


def literal(text: str) -> str:
    """Text that is no markup, as such."""
    return text.replace('*', '\\*').replace('_', '\\_').replace('`', '\\`')


def setup(app: Any) -> None:
    app.add_directive('known-errors', KnownErrors)
    app.add_directive('log-messages', LogMessages)
    app.add_directive('metrics-reference', MetricsReference)
