# SPDX-License-Identifier: LGPL-2.1-or-later
# What goes where: the one description of it. The packages are made with it (packaging/), and whoever stages pcinuma himself uses it:
#
#     make install DESTDIR=/some/where
#
# There is nothing to build or to configure. The directories are variables by the names of the GNU coding standards.
prefix = /usr
bindir = $(prefix)/bin
datadir = $(prefix)/share
mandir = $(datadir)/man
sysconfdir = /etc
unitdir = $(prefix)/lib/systemd/system
tmpfilesdir = $(prefix)/lib/tmpfiles.d
bashcompletiondir = $(datadir)/bash-completion/completions
zshcompletiondir = $(datadir)/zsh/site-functions
# The program has a directory of its own: it is no library for others.
pkgdatadir = $(datadir)/pcinuma
# oVirt's vdsm has its hooks there. After those of others, which are 50_: what they add to a VM counts.
vdsmhooksdir = $(prefix)/libexec/vdsm/hooks
PYTHON = /usr/bin/python3

INSTALL = install
INSTALL_DATA = $(INSTALL) -m 0644
INSTALL_PROGRAM = $(INSTALL) -m 0755
D = $(DESTDIR)

all:
	@echo "nothing to build; make install DESTDIR=/some/where"

install:
	rm -rf '$(D)$(pkgdatadir)'
	$(INSTALL) -d -m 0755 '$(D)$(pkgdatadir)' '$(D)$(bindir)' '$(D)$(unitdir)' '$(D)$(tmpfilesdir)' '$(D)$(mandir)/man5' '$(D)$(mandir)/man8'
	$(INSTALL) -d -m 0755 '$(D)$(bashcompletiondir)' '$(D)$(zshcompletiondir)'
	$(INSTALL) -d -m 0755 '$(D)$(sysconfdir)/pcinuma/pcinuma.conf.d' '$(D)$(sysconfdir)/libvirt/hooks/qemu.d'
	cp -R pcinuma '$(D)$(pkgdatadir)'
	find '$(D)$(pkgdatadir)' -name __pycache__ -prune -exec rm -rf {} +
	chmod -R u=rwX,go=rX '$(D)$(pkgdatadir)/pcinuma'
	for pair in pcinuma:pcinuma.cli pcinumad:pcinuma.daemon.__main__ pcinuma-proxy:pcinuma.proxy.__main__; do \
	    sed -e 's|@PYTHON@|$(PYTHON)|; s|@PKGDATADIR@|$(pkgdatadir)|' -e "s|@NAME@|$${pair%:*}|; s|@MODULE@|$${pair#*:}|" \
	        packaging/launcher.in >'$(D)$(bindir)'/$${pair%:*} && chmod 0755 '$(D)$(bindir)'/$${pair%:*} || exit 1; \
	done
	$(INSTALL_PROGRAM) hook/qemu '$(D)$(pkgdatadir)/qemu-hook'
	$(INSTALL_PROGRAM) packaging/host-setup '$(D)$(pkgdatadir)/host-setup'
	$(INSTALL_DATA) systemd/*.service systemd/*.socket systemd/*.timer '$(D)$(unitdir)'
	$(INSTALL_DATA) systemd/pcinuma.tmpfiles '$(D)$(tmpfilesdir)/pcinuma.conf'
	$(INSTALL_DATA) man/*.5 '$(D)$(mandir)/man5'
	$(INSTALL_DATA) man/*.8 '$(D)$(mandir)/man8'
	ln -sf pcinuma.8 '$(D)$(mandir)/man8/pcinumad.8'
	ln -sf pcinuma.8 '$(D)$(mandir)/man8/pcinuma-proxy.8'
	$(INSTALL_DATA) completion/pcinuma.bash '$(D)$(bashcompletiondir)/pcinuma'
	$(INSTALL_DATA) completion/_pcinuma '$(D)$(zshcompletiondir)/_pcinuma'
	$(INSTALL_DATA) config/pcinuma.conf '$(D)$(sysconfdir)/pcinuma/pcinuma.conf'

# For hosts of oVirt: a package of its own beside the one above.
install-vdsm-hook:
	$(INSTALL) -d -m 0755 '$(D)$(vdsmhooksdir)/before_vm_start'
	sed -e 's|@PYTHON@|$(PYTHON)|; s|@PKGDATADIR@|$(pkgdatadir)|' packaging/vdsm/before_vm_start.in >'$(D)$(vdsmhooksdir)/before_vm_start/60_pcinuma'
	chmod 0755 '$(D)$(vdsmhooksdir)/before_vm_start/60_pcinuma'

.PHONY: all install install-vdsm-hook
