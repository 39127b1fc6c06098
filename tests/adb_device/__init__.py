"""A phone for tests: an adb device daemon of our own, in front of a folder that looks like Android.

The real adb client and server talk to it over loopback TCP; nothing on the host's side is imitated.

    protocol.py    messages of the transport            connection.py  handshake, streams, flow control
    link.py        the TCP link: slow, cut, mangled      daemon.py      listens; which service answers what
    shell.py sync.py forward.py                          the services behind the streams
    root.py        builds the phone's file system        launcher.py    runs a command line in it, through proot and qemu
    app.py         an installed app: what `am start` starts
    fixtures/      three phones, as data                 faults.py      what goes wrong, and when
    fuzz.py        answers that are none                 arm64.py       a program for it, without a compiler
    bed.py         the adb server of one test and its phones: start here
    needs.py       the mark of tests that need it
"""
