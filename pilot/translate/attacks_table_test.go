package translate

import (
	"slices"
	"strings"
)

// Targets by pattern. Envoy's own normalization, which is Istio's default, leaves double
// and encoded slashes as they are; the targets that begin with strict decode them. What
// is not an ALLOW policy lets pass what it does not know.
const (
	everywhere = "*"
	usual      = "deny allow rego authz gateway-*"
	notAllow   = "*deny *rego *authz"
	usualDeny  = "deny gateway-deny"
	usualOpen  = "deny rego authz gateway-deny gateway-rego gateway-authz"
)

func attacks() []attack {
	return slices.Concat(attacksByPath(), attacksByRequestLine(), attacksByHost(), attacksByHeader(), attacksByFraming(), attacksByFrames())
}

// get is a request for a path, and the last one on its connection.
func get(path string, headers ...string) string {
	return ask("GET "+path+" HTTP/1.1", append([]string{"Host: HOST"}, headers...)...)
}

func ask(line string, headers ...string) string {
	return line + "\r\n" + attackMark + ": MARK\r\n" + strings.Join(append(headers, "Connection: close"), "\r\n") + "\r\n\r\n"
}

// each makes a try of every text, as it is written into a request.
func each(write func(string) string, passes map[string]string, texts ...string) []try {
	var out []try
	for _, text := range texts {
		p := map[string]string{}
		for targets, what := range passes {
			p[targets] = strings.ReplaceAll(what, "SENT", text)
		}
		out = append(out, try{bytes: write(text), passes: p})
	}
	return out
}

func attacksByPath() []attack {
	at := func(passes map[string]string, paths ...string) []try {
		return each(func(p string) string { return get(p) }, passes, paths...)
	}
	asSent := func(targets string) map[string]string { return map[string]string{targets: "GET SENT"} }
	out := []attack{
		{name: "path-plain", tries: at(nil, "/admin", "/admin/", "/admin?x=/public", "/admin/?")},
		{name: "path-dot-segments", tries: at(nil, "/./admin", "/public/../admin", "/public/./../admin", "/../admin", "/../../../../admin", "/public/../../admin", "/admin/.", "/admin/../admin", "/public/x/../../admin/.")},
		{name: "path-encoded-dots", tries: at(nil, "/public/%2e%2e/admin", "/public/%2E./admin", "/public/.%2e/admin", "/%2e/admin")},
		{name: "path-encoded-letters", tries: at(nil, "/%61dmin", "/adm%69n", "/%61%64%6d%69%6e/x")},
		{name: "path-double-slash", tries: slices.Concat(at(asSent(usualDeny), "//admin", "///admin"), at(map[string]string{usualDeny: "GET //admin"}, "/.//admin", `/\admin`))},
		{name: "path-encoded-slash", tries: slices.Concat(
			at(asSent(usualDeny), "/%2fadmin", "/%2Fadmin", "/admin%2f", "/admin%2fx"), at(asSent(usualOpen), "/public%2f..%2fadmin"), at(asSent(usual), "/public/..%2fadmin"),
		)},
		{name: "path-backslash", tries: at(nil, `/public\..\admin`, `\admin`, `/.\admin`)},
		{name: "path-encoded-backslash", tries: slices.Concat(at(asSent(usualOpen), "/%5cadmin", "/public%5c..%5cadmin"), at(asSent(usual), "/public/..%5cadmin"))},
		{name: "path-double-encoding", tries: slices.Concat(at(asSent(notAllow), "/%2561dmin", "/%252fadmin"), at(asSent(everywhere), "/public/%252e%252e/admin"))},
		{name: "path-dots-with-parameters", tries: at(nil, "/public/..;/admin", "/public/..;x=y/admin", "/public/%2e%2e;/admin", "/public/%2e%2e%3b/admin", "/public/..%3B/admin", "/.;/admin", "/public/%2E;/admin")},
		{name: "path-parameters", tries: at(asSent(notAllow), "/admin;x=1", "/admin;/x", "/;/admin")},
		{name: "path-case", tries: at(asSent(notAllow), "/ADMIN", "/Admin/x")},
		{name: "path-control-characters", tries: at(nil, "/admin%00", "/public%00/../admin", "/admin\x00", "/admin\x7f", "/admin\x01", "/admin\x0b")},
		{name: "path-space", tries: slices.Concat(at(nil, "/admin ", " /admin", "/admin\t"), at(asSent(notAllow), "/admin%20", "/admin%09", "/admin%0d%0ax:y"))},
		{name: "path-fragment", tries: slices.Concat(at(nil, "/admin#f", "/public#/../admin", "/#/admin"), at(asSent(notAllow), "/admin%23x"))},
		{name: "path-query", tries: slices.Concat(at(asSent(everywhere), "/public?/../../admin", "/public?x=%2f../admin"), at(asSent(notAllow), "/admin%3fx"))},
		{name: "path-overlong-utf8", tries: slices.Concat(at(asSent(notAllow), "/%c0%afadmin", "/%e0%80%afadmin"), at(asSent(everywhere), "/public/%c0%ae%c0%ae/admin", "/public/%e0%80%ae%e0%80%ae/admin", "/public/..%c0%afadmin", "/public/..%ef%bc%8fadmin"))},
		{name: "path-raw-bytes", tries: at(nil, "/\xc0\xafadmin", "/public/\xc0\xae\xc0\xae/admin", "/public/\xe2\x80\xae/admin", "/\xc3\xa4dmin")},
		{name: "path-bad-escapes", tries: slices.Concat(at(asSent("*deny"), "/%zzadmin", "/admin%", "/%6"), at(asSent("*deny *allow"), "/public/..%u002fadmin", "/public/%"))},
		{name: "path-without-slash", tries: at(nil, "admin", "*", "?/admin", "", ".", "..")},
		{name: "path-more-dots", tries: slices.Concat(at(asSent(notAllow), "/.../admin"), at(asSent(everywhere), "/public/.../admin"))},
		{name: "path-long", tries: at(nil, "/"+strings.Repeat("./", 10000)+"admin", "/public"+strings.Repeat("/../public", 1000)+"/../admin", "/"+strings.Repeat("a", 70000), "/admin?"+strings.Repeat("a", 70000))},
	}
	for i := range out {
		out[i].paths = true
	}
	return out
}

func attacksByRequestLine() []attack {
	lines := func(passes map[string]string, lines ...string) []try {
		return each(func(l string) string { return ask(l, "Host: HOST") }, passes, lines...)
	}
	target := func(passes map[string]string, targets ...string) []try {
		return each(func(target string) string { return ask("GET "+target+" HTTP/1.1", "Host: HOST") }, passes, targets...)
	}
	public := map[string]string{everywhere: "GET /public"}
	return []attack{
		{name: "http-1.0", tries: lines(nil, "GET /admin HTTP/1.0", "GET /public HTTP/1.0", "POST /public HTTP/1.0")},
		{name: "http-0.9", tries: lines(nil, "GET /admin", "GET /public", "GET /admin HTTP/0.9")},
		{name: "http-versions", tries: lines(nil, "GET /public HTTP/2.0", "GET /public HTTP/1.2", "GET /public HTTP/1.1 HTTP/1.1", "GET /public http/1.1", "GET /public HTTP/1.10", "GET /public HTTP/01.1", "GET /public HTTP/9.9")},
		{name: "absolute-path", tries: slices.Concat(
			target(nil, "http://HOST/admin", "HTTP://HOST/admin", "http://HOST/public/../admin", "http://HOST/%61dmin", "http://HOST/public/%2e%2e;/admin"), target(map[string]string{usualDeny: "GET //admin"}, "http://HOST//admin"),
		)},
		{name: "absolute-host", tries: target(nil, "http://secret.example/public", "http://SECRET.example/public", "http://secret.example:80/public", "http://secret.example./public")},
		{name: "absolute-userinfo", tries: slices.Concat(target(nil, "http://HOST@secret.example/public", "http://HOST:80@secret.example/public"), target(public, "http://u:p@HOST/public"))},
		{name: "absolute-malformed", tries: target(nil, "http:/admin", "http:///admin", "http://HOST:99999/admin", "http://HOST?/admin", "http://HOST#@secret.example/public", `http://HOST\@secret.example/public`, "http://HOST%2fadmin/public", "file:///admin", "ws://HOST/public", "http://", "://HOST/admin")},
		{name: "absolute-scheme", tries: target(map[string]string{"deny allow rego authz": "GET /public"}, "https://HOST/public")},
		{name: "network-path", tries: target(map[string]string{usualOpen: "GET //HOST/admin"}, "//HOST/admin")},
		{name: "connect", tries: lines(nil, "CONNECT HOST:80 HTTP/1.1", "CONNECT /admin HTTP/1.1", "CONNECT /public HTTP/1.1", "CONNECT secret.example:80 HTTP/1.1")},
		{name: "asterisk", tries: lines(nil, "OPTIONS * HTTP/1.1", "GET * HTTP/1.1")},
		{name: "method-case", tries: lines(nil, "delete /public HTTP/1.1", "Delete /public HTTP/1.1", "get /public HTTP/1.1", "get /admin HTTP/1.1")},
		{name: "method-unknown", tries: lines(nil, "GETX /public HTTP/1.1", "DELETE\x00 /public HTTP/1.1", "GET,DELETE /public HTTP/1.1", "G\x0bET /admin HTTP/1.1", "GET\x00 /admin HTTP/1.1")},
		{name: "method-other", tries: lines(nil, "DELETE /public HTTP/1.1", "PROPFIND /admin HTTP/1.1", "OPTIONS /admin HTTP/1.1", "TRACE /admin HTTP/1.1", "HEAD /admin HTTP/1.1")},
		{name: "method-override", tries: each(func(h string) string { return get("/public", h) }, public, "X-HTTP-Method-Override: DELETE", "X-Method-Override: DELETE", "X-HTTP-Method: DELETE")},
		{name: "line-space", tries: lines(nil, "GET\t/admin HTTP/1.1", "GET  /admin HTTP/1.1", "\r\nGET /admin HTTP/1.1", " GET /admin HTTP/1.1", "GET /admin\tHTTP/1.1")},
	}
}

func attacksByHost() []attack {
	hosts := func(passes map[string]string, headers ...string) []try {
		return each(func(h string) string { return ask("GET /public HTTP/1.1", strings.Split(h, "|")...) }, passes, headers...)
	}
	return []attack{
		{name: "host-spelling", tries: hosts(nil, "Host: secret.example", "Host: SECRET.EXAMPLE", "Host: secret.example.", "Host: secret.example:80", "Host: secret.example.:8080", "Host: secret.example:", "Host: secret.example:abc", "Host: secret.example:80:80", "Host:\tsecret.example\t")},
		{name: "host-empty-label", tries: hosts(nil, "Host: secret.example..", "Host: secret..example", "Host: secret.example..:80")},
		{name: "host-twice", tries: hosts(nil, "Host: HOST|Host: secret.example", "Host: secret.example|Host: HOST", "Host: HOST|host: HOST", "Host: HOST|x: y|hOST: secret.example")},
		{name: "host-comma", tries: hosts(nil, "Host: HOST,secret.example", "Host: secret.example,HOST", "Host: HOST, secret.example")},
		{name: "host-userinfo", tries: hosts(nil, "Host: u@secret.example", "Host: HOST@secret.example", "Host: u:p@secret.example:80")},
		{name: "host-encoded", tries: hosts(nil, "Host: secret%2eexample", "Host: %73ecret.example")},
		{name: "host-characters", tries: hosts(nil, "Host: secret.example/", "Host: secret.example/admin", "Host: secret.example?x", "Host: secret.example#x", `Host: secret.example\x`, "Host: secret.example x", "Host: secret.example\x00", "Host: s\xc3\xa9cret.example", "Host: \xef\xbd\x93ecret.example")},
		{name: "host-missing", tries: hosts(nil, "x: y")},
		{name: "host-empty", tries: hosts(map[string]string{"deny rego authz": "GET /public"}, "Host:", "Host: ")},
		{name: "host-pseudo-headers", tries: hosts(nil, "Host: HOST|:authority: secret.example", "Host: HOST|:path: /admin", "Host: HOST|:method: DELETE", ":authority: HOST")},
		{name: "host-name-space", tries: hosts(nil, "Host : HOST", "Host\t: HOST", "x: y|Host : secret.example|Host: HOST")},
		{name: "host-forwarded", tries: hosts(map[string]string{everywhere: "GET /public"}, "Host: HOST|X-Forwarded-Host: secret.example", "Host: HOST|Forwarded: host=secret.example")},
	}
}

func attacksByHeader() []attack {
	with := func(passes map[string]string, headers ...string) []try {
		return each(func(h string) string { return get("/public", strings.Split(h, "|")...) }, passes, headers...)
	}
	never := func(what string, headers ...string) []try {
		out := with(map[string]string{everywhere: "GET /public"}, headers...)
		for i := range out {
			out[i].never = what
		}
		return out
	}
	atGateways := func(tries []try) []try {
		for i := range tries {
			tries[i].gateways = true
		}
		return tries
	}
	public := map[string]string{everywhere: "GET /public"}
	twice := older(public, with(map[string]string{"*rego *authz": "GET /public"}, "x-role: user|x-role: admin", "x-role: admin|x-role: user"))
	return []attack{
		{name: "header-spelling", tries: with(nil, "x-role: admin", "X-ROLE: admin", "x-role:admin", "x-role: admin ", "x-role:\tadmin\t", "x-role:   admin")},
		{name: "header-twice", tries: twice},
		{name: "header-name-space", tries: with(nil, "x-role : admin", "x-role\t: admin", " x-role: admin", "x-role\x00: admin")},
		{name: "header-names", tries: with(nil, ": admin", "x-role admin", "x(role): admin", "x\x7frole: admin", "x-r\xc3\xb6le: admin", "x-role;: admin", "x@role: admin")},
		{name: "header-underscore", tries: with(public, "x_role: admin", "X_ROLE: admin")},
		{name: "header-fold", tries: slices.Concat(with(nil, "x-role:|  admin", "x-role:|\tadmin"), with(public, "x-role: a|\tadmin", "x-role: ad|  min"))},
		{name: "header-controls", tries: with(nil, "x-role: admin\x00", "x-role: \x00admin", "x-role: admin\x0b", "x: \x01")},
		{name: "header-line-ends", tries: slices.Concat(with(nil, "x: y\nx-role: admin"), with(public, "x-role: admin\rx: y", "x: y\rx-role: admin"))},
		{name: "header-bytes", tries: with(public, "x-role: adm\xffin", "x-role: adm\xc3\xa4in")},
		{name: "header-nominated", tries: never("admin", "connection: x-role|x-role: admin", "connection: X-Role, close|x-role: admin")},
		{name: "header-huge", tries: with(nil, "x-big: "+strings.Repeat("a", 70000), strings.Repeat("x-many: a|", 150)+"x: y")},
		{name: "header-client-cert", tries: never("forged", "x-forwarded-client-cert: URI=spiffe://forged", "X-Forwarded-Client-Cert: URI=forged|x-forwarded-client-cert: Hash=forged", "x-forwarded-client-cert: a|connection: x-forwarded-client-cert|x-forwarded-client-cert: forged")},
		{name: "header-envoy", tries: atGateways(never("forged", forgedEnvoyHeaders()...))},
		{name: "header-forwarded-proto", tries: atGateways(never("forged", "x-forwarded-proto: forged", "x-forwarded-proto: https,forged"))},
		{name: "authorization-twice", tries: with(nil, "authorization: Bearer a|authorization: Bearer b", "authorization: Basic a|authorization: Bearer b", "authorization: Bearer a, bearer b", "authorization: Bearer a,b")},
		{name: "upgrade-unknown", tries: with(nil, "Upgrade: foo|Connection: upgrade", "Upgrade: TLS/1.0|Connection: Upgrade")},
	}
}

// forgedEnvoyHeaders are those that Envoy takes orders or words from.
func forgedEnvoyHeaders() []string {
	var out []string
	for _, name := range []string{
		"attempt-count", "decorator-operation", "downstream-service-cluster", "downstream-service-node", "expected-rq-timeout-ms", "external-address", "force-trace", "hedge-on-per-try-timeout", "internal", "ip-tags",
		"is-timeout-retry", "max-retries", "original-dst-host", "original-host", "original-path", "peer-metadata", "peer-metadata-id", "retriable-header-names", "retriable-status-codes", "retry-grpc-on", "retry-on",
		"upstream-alt-stat-name", "upstream-rq-per-try-timeout-ms", "upstream-rq-timeout-alt-response", "upstream-rq-timeout-ms", "upstream-stream-duration-ms",
	} {
		out = append(out, "x-envoy-"+name+": forged")
	}
	return out
}

func attacksByFraming() []attack {
	const hidden = "GET /admin/hidden HTTP/1.1\r\nHost: HOST\r\n" + attackMark + ": MARK\r\nConnection: close\r\n\r\n"
	posted := func(passes map[string]string, body string, headers ...string) []try {
		return each(func(h string) string {
			return "POST /public HTTP/1.1\r\nHost: HOST\r\n" + attackMark + ": MARK\r\n" + strings.ReplaceAll(h, "|", "\r\n") + "\r\n\r\n" + body + hidden
		}, passes, headers...)
	}
	further := func(tries []try) []try {
		for i := range tries {
			tries[i].answers = 3
		}
		return tries
	}
	chunked := func(passes map[string]string, bodies ...string) []try {
		var out []try
		for _, b := range bodies {
			out = append(out, further(posted(passes, b, "Transfer-Encoding: chunked"))...)
		}
		return out
	}
	upgrade := func(headers ...string) []try {
		return further(each(func(h string) string {
			return "GET /public HTTP/1.1\r\nHost: HOST\r\n" + attackMark + ": MARK\r\n" + strings.ReplaceAll(h, "|", "\r\n") + "\r\n\r\n" + hidden
		}, map[string]string{everywhere: "GET /public"}, headers...))
	}
	public := map[string]string{everywhere: "POST /public"}
	// What is refused in the middle of a body may have begun to arrive.
	begun := map[string]string{everywhere: "?POST /public"}
	const end = "0\r\n\r\n"
	return []attack{
		{name: "length-and-chunked", tries: further(posted(nil, end, "Content-Length: 4|Transfer-Encoding: chunked", "Transfer-Encoding: chunked|Content-Length: 4"))},
		{name: "transfer-encodings", tries: slices.Concat(
			further(posted(nil, end, "Transfer-Encoding: xchunked", "Transfer-Encoding: chunked|Transfer-Encoding: identity", "Transfer-Encoding: identity, chunked", "Transfer-Encoding: chunked, identity", "Transfer-Encoding: chunked, chunked", "Transfer-Encoding: gzip, chunked",
				"Transfer-Encoding : chunked", "Transfer-Encoding: \x0bchunked", "Transfer-Encoding: chunked;q=1", "Transfer-Encoding:")),
			further(posted(public, end, "Transfer-Encoding:|  chunked", "Transfer-Encoding: Chunked", "X: y\nTransfer-Encoding: chunked")),
		)},
		{name: "transfer-encoding-hidden", tries: further(posted(public, end, "transfer_encoding: chunked", "X: y\rTransfer-Encoding: chunked", "content_length: 200"))},
		{name: "content-lengths", tries: further(posted(nil, end, "Content-Length: 0|Content-Length: 5", "Content-Length: 5|Content-Length: 5", "Content-Length: +5", "Content-Length: -1", "Content-Length: 0x5", "Content-Length: 5, 5", "Content-Length: 5 5", "Content-Length: 99999999999999999999999", "Content-Length:", "Content-Length : 5"))},
		{name: "chunk-sizes", tries: slices.Concat(chunked(begun, "10000000000000000\r\na\r\n"+end, "0x1\r\na\r\n"+end, "-1\r\na\r\n"+end, "g\r\na\r\n"+end), chunked(public, "1 \r\na\r\n"+end, "1\r\nabc\r\n"+end))},
		{name: "chunk-lines", tries: slices.Concat(chunked(begun, "1\na\n0\n\n", "1;x=\"\r\n\"\r\na\r\n"+end), chunked(public, "1;a=b\r\na\r\n"+end))},
		{name: "trailers", tries: chunked(begun, "0\r\nx-role: admin\r\nhost: secret.example\r\n:path: /admin\r\ncontent-length: 5\r\n\r\n")},
		{name: "pipelined", tries: []try{{answers: 2, bytes: "GET /public HTTP/1.1\r\nHost: HOST\r\n" + attackMark + ": MARK\r\n\r\n" + hidden, passes: map[string]string{everywhere: "GET /public"}}}},
		{name: "body-of-a-get", tries: []try{{answers: 2, bytes: "GET /public HTTP/1.1\r\nHost: HOST\r\n" + attackMark + ": MARK\r\nContent-Length: 29\r\n\r\nGET /admin/hidden HTTP/1.1\r\n\r" + hidden, passes: map[string]string{everywhere: "GET /public"}}}},
		{name: "websocket-hides-a-request", tries: upgrade("Connection: Upgrade|Upgrade: websocket|Sec-WebSocket-Version: 13|Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Connection: Upgrade|Upgrade: WebSocket|Sec-WebSocket-Version: 777", "Connection: Upgrade|Upgrade: websocket|Content-Length: 0")},
		{name: "websocket-to-admin", tries: each(func(h string) string { return get("/admin", "Upgrade: "+h) + hidden }, nil, "websocket", "WebSocket")},
		{name: "h2c-hides-a-request", tries: upgrade("Connection: Upgrade, HTTP2-Settings|Upgrade: h2c|HTTP2-Settings: AAMAAABkAAQAAP__")},
		{name: "line-feeds-alone", tries: []try{{bytes: "GET /public HTTP/1.1\nHost: HOST\nx-role: admin\n\n"}}},
	}
}

// older says what passes the oldest Envoy.
func older(passes map[string]string, tries []try) []try {
	for i := range tries {
		tries[i].oldest = passes
	}
	return tries
}

func attacksByFrames() []attack {
	frames := func(passes map[string]string, changes ...string) []try {
		out := each(func(string) string { return "" }, passes, changes...)
		for i, c := range changes {
			out[i].frames = strings.Split(c, "|")
		}
		return out
	}
	public := map[string]string{everywhere: "GET /public"}
	return []attack{
		{name: "h2-path", paths: true, tries: slices.Concat(
			frames(nil, ":path: /admin", ":path: /./admin", ":path: /public/../admin", ":path: /%61dmin", ":path: /public/..;/admin", ":path: /public/%2e%2e;/admin"), frames(map[string]string{usualDeny: "GET //admin"}, ":path: //admin"),
		)},
		{name: "h2-path-form", tries: slices.Concat(
			frames(nil, ":path: /admin#x", ":path: /public#/admin", ":path: admin", ":path: ", ":path: *", ":path: /admin x", ":path: /admin\x00", ":path: /ad\tmin", ":path: http://HOST/admin", ":path: http://secret.example/public", ":path: /"+strings.Repeat("a", 70000)),
			frames(map[string]string{usualOpen: "GET /%C0%AFadmin"}, ":path: /\xc0\xafadmin"),
		)},
		{name: "h2-path-smuggles-a-request", tries: frames(nil, ":path: /public\r\nx-role: user", ":path: /public HTTP/1.1\r\nHost: secret.example\r\n\r\nGET /admin", ":path: /public\nx: y")},
		{name: "h2-pseudo-headers-twice", tries: frames(nil, "+:path: /admin", ":path: /admin|+:path: /public", "+:path: /public", "+:method: DELETE", ":method: DELETE|+:method: GET", "+:authority: secret.example", "+:scheme: https")},
		{name: "h2-pseudo-headers-missing", tries: slices.Concat(frames(nil, "-:path", "-:method", "-:scheme", "-:authority", "-:authority|host: secret.example"), frames(public, "-:authority|host: HOST"))},
		{name: "h2-pseudo-headers-late", tries: frames(nil, "x: y|+:path: /admin", "-:path|x: y|+:path: /admin", "-:method|x: y|+:method: DELETE")},
		{name: "h2-pseudo-headers-unknown", tries: frames(nil, ":status: 200", ":x: y", ":PATH: /admin", "+:host: secret.example")},
		{name: "h2-authority", tries: frames(nil, ":authority: secret.example", ":authority: SECRET.example", ":authority: secret.example.", ":authority: secret.example:80", ":authority: secret.example..", ":authority: HOST,secret.example", ":authority: u@secret.example",
			":authority: secret%2eexample", ":authority: secret.example/", ":authority: HOST\r\nx-role: admin", ":authority: HOST x")},
		{name: "h2-authority-empty", tries: older(map[string]string{"deny rego authz": "GET /public"}, frames(nil, ":authority: "))},
		{name: "h2-host-beside-authority", tries: slices.Concat(frames(nil, ":authority: secret.example|host: HOST"), frames(public, "host: secret.example"))},
		{name: "h2-method-case", tries: frames(nil, ":method: delete", ":method: Delete", ":method: dELETE", ":method: get")},
		{name: "h2-method-form", tries: slices.Concat(frames(nil, ":method: DELETE", ":method: GET /admin", ":method: GET /admin HTTP/1.1\r\nx: ", ":method: ", ":method: DELETE\x00", ":method: DELETE "), frames(map[string]string{usualOpen: "GETX /public"}, ":method: GETX"))},
		{name: "h2-connect", tries: frames(nil, ":method: CONNECT", ":method: CONNECT|-:scheme|-:path", ":method: CONNECT|-:scheme|-:path|:authority: secret.example", ":method: CONNECT|+:protocol: connect-udp", ":protocol: websocket", ":method: OPTIONS|:path: *")},
		{name: "h2-websocket", tries: slices.Concat(frames(nil, ":method: CONNECT|+:protocol: websocket|:path: /admin", ":method: CONNECT|+:protocol: websocket|:path: /public/../admin", ":method: CONNECT|+:protocol: websocket|:authority: secret.example"), frames(public, ":method: CONNECT|+:protocol: websocket"))},
		{name: "h2-scheme", tries: slices.Concat(older(public, frames(nil, ":scheme: http://secret.example/?", ":scheme: ")), frames(nil, ":scheme: http\r\nx: y"), frames(public, ":scheme: https", ":scheme: ftp"))},
		{name: "h2-header-names", tries: frames(nil, "X-Role: admin", "x-role : admin", "x\nrole: admin", "x(role): admin", "x-r\x00ole: admin")},
		{name: "h2-header-values", tries: slices.Concat(frames(nil, "x-role: admin", "x: y\r\nx-role: admin", "x: y\nx-role: admin", "x: y\rx-role: admin", "x: y\x00"))},
		{name: "h2-connection-headers", tries: frames(nil, "transfer-encoding: chunked", "connection: close", "connection: x-user|x-user: a", "keep-alive: 1", "proxy-connection: x", "upgrade: websocket", "te: gzip")},
		{name: "h2-content-length", tries: slices.Concat(frames(map[string]string{everywhere: "?GET /public"}, "content-length: 5"), frames(nil, "content-length: 0|content-length: 5", "content-length: -1", "content-length: abc"))},
		{name: "h2-header-huge", tries: frames(nil, "x-big: "+strings.Repeat("a", 70000), strings.Repeat("x-many: a|", 150)+"x: y")},
		{name: "h2-authorization-twice", tries: frames(nil, "authorization: Bearer a|authorization: Bearer b", "authorization: Basic a|authorization: Bearer b")},
		{name: "h2-grpc-path", paths: true, tries: slices.Concat(
			frames(nil, ":method: POST|content-type: application/grpc|:path: /admin/Drop", ":method: POST|content-type: application/grpc|:path: /%61dmin/Drop", ":method: POST|content-type: application/grpc|:path: /public/%2e%2e;/admin/Drop"),
			frames(map[string]string{usualDeny: "POST //admin/Drop"}, ":method: POST|content-type: application/grpc|:path: //admin/Drop"),
		)},
	}
}
