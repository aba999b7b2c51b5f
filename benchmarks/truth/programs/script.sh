#!/usr/bin/env bash
# What a script does with files: pipelines, redirections, and the tools that change a tree.
# Usage: script.sh DIRECTORY, which is read.
set -euo pipefail
source=$1

mkdir -p tree/deep/er
cp -r "$source" tree/copy
cp -a tree/copy tree/again
find tree/copy -name '*.c' -print0 | xargs -0 grep -l lua_ | sort | head -n 5 >found
while read -r file; do wc -l <"$file"; done <found | sort -n | tail -n 1 >total
sed -i 's/lua_/LUA_/g' tree/copy/*.c
sed -i.bak 's/LUA_/lua_/g' tree/copy/lapi.c
mv tree/copy/lapi.c tree/deep/moved.c
mv tree/copy tree/renamed
ln -s deep/moved.c tree/link
ln tree/deep/moved.c tree/hard
ln -sf renamed tree/link
install -D -m 755 found tree/bin/found
touch tree/new && touch -d '2001-02-03 04:05:06' tree/new
chmod -R go-w tree/again
chmod 600 tree/new
truncate -s 4096 tree/new
tar -C tree -cf - again | tar -C tree/deep -xf -
gzip -k found && gunzip -c found.gz | cmp - found
printf '%s\n' {1..200} | awk '{ s += $1 } END { print s > "sum" }'
diff -r tree/again tree/deep/again
cat <<<"here" >>total
(cd tree/deep && rm moved.c && rmdir er)
for i in 1 2 3; do echo "$i" >"tree/file$i"; done
rm -r tree
[ ! -e tree ] && ls -la >listing
