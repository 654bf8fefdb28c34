#!/bin/busybox sh
# The front page: which container answers. With a volume at /data it counts its visits there.
name=$(busybox hostname)
visits=
if [ -w /data ]; then
    count=$(($(busybox cat /data/visits 2>/dev/null || echo 0) + 1))
    echo "$count" >/data/visits.new && busybox mv /data/visits.new /data/visits
    visits="<p>Visit number <b>$count</b>, kept in <code>/data</code>.</p>"
fi
printf 'Content-Type: text/html; charset=utf-8\r\nCache-Control: no-store\r\n\r\n'
busybox cat <<HTML
<!doctype html>
<html lang="en">
<title>Hello from $name</title>
<meta name="viewport" content="width=device-width">
<style>body{font:1.1rem/1.5 system-ui,sans-serif;max-width:34rem;margin:4rem auto;padding:0 1rem}</style>
<h1>Hello</h1>
<p>This page comes from container <b>$name</b>.</p>
$visits
</html>
HTML
