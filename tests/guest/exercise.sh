#!/bin/sh
# Runs inside a guest: exercises the machine and prints one deterministic line a subject. tests/guest/exercise.expected is what a real machine prints.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin LC_ALL=C

s=0; i=0
while [ $i -lt 20000 ]; do i=$((i + 1)); s=$(((s * 31 + i) % 1000003)); done
echo "sh: $s"

awk 'BEGIN { n = 0; for (i = 2; n < 2000; i++) { p = 1; for (j = 2; j * j <= i; j++) if (i % j == 0) { p = 0; break } if (p) { n++; s += i } }
    for (k = 1; k < 100000; k++) h += 1 / k; printf "awk: %d %.10f\n", s, h }'

echo "sha256: $(yes ring3 | head -c 10000000 | sha256sum)"
echo "gzip: $(seq 1 400000 | gzip -9 | gunzip | md5sum)"
echo "bzip2: $(seq 1 60000 | bzip2 | bunzip2 | sha1sum)"

ok=0; i=0
while [ $i -lt 200 ]; do (exit $((i % 100))); [ $? = $((i % 100)) ] && ok=$((ok + 1)); i=$((i + 1)); done
echo "forks: $ok"

i=0
while [ $i -lt 20 ]; do seq 1 2000 | grep 7 | sed 's/7/x/g' | sort -r | tr x y | head -50 | md5sum; i=$((i + 1)); done | sort -u | sed 's/^/pipes: /'

i=0
while [ $i -lt 8 ]; do (seq 1 30000 | sort -rn | sha256sum > /tmp/p$i) & i=$((i + 1)); done
wait
echo "parallel: $(cat /tmp/p? | sort -u)"

if command -v perl >/dev/null; then
    perl -e '
        my ($a, $c) = (0, 0); my %h; my $t = "";
        for my $i (1 .. 100000) { $a = ($a * 1103515245 + 12345) % 2147483648; $h{$a % 997}++; $t .= chr(97 + $a % 26) if $i % 10 == 0; }
        $c++ while $t =~ /[aeiou]{2,}/g;
        my $x = 1; $x = $x * 1.0000001 + sin($_) / ($_ + 1) for 1 .. 100000;
        printf "perl: %d %d %d %.12e %s\n", $a, scalar(keys %h), $c, $x, unpack("%32C*", $t);
        my @s = sort { $a <=> $b } map { ($_ * 7919) % 100003 } 1 .. 50000; print "perl sort: $s[0] $s[25000] $s[49999]\n";
    '
fi
if command -v openssl >/dev/null; then
    echo "openssl sha512: $(yes ring3 | head -c 5000000 | openssl dgst -sha512 -r)"
    echo "openssl gcm-ctr: $(yes ring3 | head -c 5000000 | openssl enc -aes-128-ctr -K 000102030405060708090a0b0c0d0e0f -iv 00000000000000000000000000000000 | openssl dgst -sha1 -r)"
    echo "openssl chacha: $(yes ring3 | head -c 5000000 | openssl enc -chacha20 -K 000102030405060708090a0b0c0d0e0f000102030405060708090a0b0c0d0e0f -iv 00000000000000000000000000000000 | openssl dgst -sha256 -r)"
    openssl speed -seconds 1 -bytes 1024 -evp aes-128-gcm >/tmp/speed 2>&1 && openssl speed -seconds 1 -bytes 1024 sha256 >>/tmp/speed 2>&1 && echo "openssl speed: ok"
fi
