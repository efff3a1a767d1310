package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
)

// roleRule looks a role up in a large document.
const roleRule = `package envoy.authz

default allow := false

allow if {
	some role in data.users[input.attributes.request.http.headers["x-user"]]
	data.roles[role][input.attributes.request.http.method]
}
`

// percentile of sorted values, in thousandths.
func percentile(sorted []time.Duration, thousandths int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)*thousandths/1000, len(sorted)-1)]
}

// percentileOfBoth is a percentile, in thousandths, of a population of which share, from 0
// to 1, is like some and the rest like others: what is seldom can be measured often, and be
// counted as seldom as it is.
func percentileOfBoth(some, others []time.Duration, share float64, thousandths int) time.Duration {
	type weighed struct {
		took   time.Duration
		weight float64
	}
	var all []weighed
	add := func(took []time.Duration, share float64) {
		for _, d := range took {
			all = append(all, weighed{d, share / float64(len(took))})
		}
	}
	add(some, share)
	add(others, 1-share)
	slices.SortFunc(all, func(a, b weighed) int { return cmp.Compare(a.took, b.took) })
	below := 0.0
	for _, w := range all {
		if below += w.weight; below*1000 > float64(thousandths) {
			return w.took
		}
	}
	return 0
}

// authzData lets authz load o.dataMiB of users and roles, and asks it about users that
// it was not asked about before.
func authzData(ctx context.Context, o options) ([]row, error) {
	users, err := writeRoles(filepath.Join(o.dir, "data.json"), o.dataMiB<<20)
	if err != nil {
		return nil, err
	}
	addr, err := freeAddress()
	if err != nil {
		return nil, err
	}
	conf, policy := filepath.Join(o.dir, "config.yaml"), filepath.Join(o.dir, "policy.rego")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "plugins:\n  envoy_ext_authz_grpc:\n    addr: %s\n", addr), 0o600); err != nil {
		return nil, err
	}
	if err := os.WriteFile(policy, []byte(roleRule), 0o600); err != nil {
		return nil, err
	}
	begin := time.Now()
	server, err := launchWithin(ctx, 5*time.Minute, addr, filepath.Join(o.bin, "writ-authz"), "-opa-config", conf, policy, filepath.Join(o.dir, "data.json"))
	if err != nil {
		return nil, err
	}
	defer server.stop()
	loaded := time.Since(begin)
	cpu, err := server.cpu()
	if err != nil {
		return nil, err
	}
	floor, floorAddr, err := floorProcess(ctx)
	if err != nil {
		return nil, err
	}
	defer floor.stop()
	asked := 0 // so that each check is about a user nobody asked about before
	load := checks(addr, 1000, func(n int) *authv3.CheckRequest {
		r := checkRequest(fmt.Sprintf("/api/orders/%d", n))
		r.Attributes.Request.Http.Headers["x-user"] = userName((asked + n) * 7919 % users)
		return r
	})
	var ours, floors []time.Duration
	for range o.rounds {
		got, err := load.run(ctx, 2*o.each)
		if err != nil {
			return nil, err
		}
		asked += wireRequests
		load := load
		load.address = floorAddr
		empty, err := load.run(ctx, 2*o.each)
		if err != nil {
			return nil, err
		}
		ours, floors = append(ours, got.took...), append(floors, empty.took...)
	}
	slices.Sort(ours)
	slices.Sort(floors)
	return []row{{
		name: fmt.Sprintf("authz, %d MiB of data, 1,000 checks a second, p99", o.dataMiB), ours: percentile(ours, 990), floor: percentile(floors, 990),
		note: fmt.Sprintf("p50 %s and %s, p99.9 %s and %s; loaded in %.1f s (%.1f s of CPU), %.0f MiB resident, %.0f at most; goals: 30 s, p99 1 ms",
			micro(percentile(ours, 500)), micro(percentile(floors, 500)), micro(percentile(ours, 999)), micro(percentile(floors, 999)),
			loaded.Seconds(), cpu.Seconds(), server.rss(), server.peak()),
	}}, nil
}

// checks is a load of so many checks in a second that are all allowed.
func checks(address string, rate int, request func(n int) *authv3.CheckRequest) wire {
	return wire{
		address: address, connections: 4, inFlight: 256, rate: rate, method: authv3.Authorization_Check_FullMethodName,
		request: func(n int) proto.Message { return request(n) },
		answer: func(message []byte) error {
			var resp authv3.CheckResponse
			if err := proto.Unmarshal(message, &resp); err != nil {
				return err
			}
			if resp.GetStatus().GetCode() != int32(codes.OK) {
				return fmt.Errorf("answered %v", resp.GetStatus())
			}
			return nil
		},
	}
}

func userName(n int) string { return fmt.Sprintf("user-%08d@example.org", n) }

// writeRoles writes a document of about size bytes and gives how many users it has.
func writeRoles(path string, size int) (users int, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600) //nolint:gosec // the folder of this run
	if err != nil {
		return 0, err
	}
	defer func() { err = cmp.Or(err, f.Close()) }()
	w := bufio.NewWriter(f)
	n, _ := fmt.Fprint(w, `{"roles": {`)
	for i := range 1000 {
		m, _ := fmt.Fprintf(w, `%s"role-%04d": {"GET": true, "POST": %v, "DELETE": false}`, strings.Repeat(", ", min(i, 1)), i, i%2 == 0)
		n += m
	}
	m, _ := fmt.Fprint(w, `}, "users": {`)
	for n += m; n < size; users++ {
		m, _ := fmt.Fprintf(w, `%s%q: ["role-%04d", "role-%04d", "role-%04d"]`, strings.Repeat(", ", min(users, 1)), userName(users), users%1000, users*7%1000, users*13%1000)
		n += m
	}
	_, _ = fmt.Fprint(w, "}}\n")
	return users, w.Flush()
}

// reloaded is what is done with 800 modules.
type reloaded struct {
	// reached says that decisions reach all of them, rather than one.
	reached bool
	// one says that one of them has changed, rather than all.
	one bool
}

// authzReload lets authz take a new bundle of 800 modules again and again while it is
// asked 5,000 times a second.
func authzReload(ctx context.Context, o options) ([]row, error) {
	var rows []row
	for _, what := range []reloaded{{one: true}, {}, {reached: true}} {
		r, err := reload(ctx, o, what)
		if err != nil {
			return rows, err
		}
		rows = append(rows, r)
	}
	return rows, nil
}

func reload(ctx context.Context, o options, what reloaded) (row, error) {
	bundles, err := serveBundles(ctx, 800, what)
	if err != nil {
		return row{}, err
	}
	defer bundles.stop()
	addr, err := freeAddress()
	if err != nil {
		return row{}, err
	}
	conf := filepath.Join(o.dir, "config.yaml")
	text := fmt.Sprintf("services:\n  bench:\n    url: http://%s\nbundles:\n  authz:\n    service: bench\n    resource: bundle.tar.gz\n"+
		"    polling:\n      min_delay_seconds: 1\n      max_delay_seconds: 1\nplugins:\n  envoy_ext_authz_grpc:\n    addr: %s\n", bundles.address, addr)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return row{}, err
	}
	server, err := launch(ctx, addr, filepath.Join(o.bin, "writ-authz"), "-opa-config", conf)
	if err != nil {
		return row{}, err
	}
	defer server.stop()
	load := checks(addr, 5000, func(n int) *authv3.CheckRequest { return checkRequest(fmt.Sprintf("/api/orders/%d", n)) })
	if err := untilAllowed(ctx, addr); err != nil {
		return row{}, err
	}
	if _, err := load.run(ctx, o.each); err != nil {
		return row{}, err
	}
	var quiet, busy []time.Duration
	var reloads int64
	var quietAll, busyAll []time.Duration
	var reloading time.Duration // of processor time, without what the checks take
	// A reload comes in each two seconds or so: longer parts of a run have the same share of it.
	const spellsPerReload = 4
	var quietSpells, busySpells []spell
	var inAMinute []row // as if a bundle came once in a minute
	timed := func() (got wired, cpu time.Duration, err error) {
		before, err := server.cpu()
		if err != nil {
			return wired{}, 0, err
		}
		if got, err = load.run(ctx, 2*o.each); err != nil {
			return wired{}, 0, err
		}
		after, err := server.cpu()
		return got, after - before, err
	}
	for range o.rounds {
		bundles.frozen.Store(true)
		if err := pause(ctx, 2*time.Second); err != nil { // what was fetched last is in force
			return row{}, err
		}
		q, alone, err := timed()
		if err != nil {
			return row{}, err
		}
		bundles.frozen.Store(false)
		before := bundles.served.Load()
		b, both, err := timed()
		if err != nil {
			return row{}, err
		}
		reloading += both - alone
		made := bundles.served.Load() - before
		reloads += made
		inAMinute = append(inAMinute, row{
			ours:  percentileOfBoth(b.took, q.took, min(1, (2*o.each).Minutes()/float64(max(made, 1))), 990),
			floor: percentile(q.took, 990),
		})
		quiet, busy = append(quiet, percentile(q.took, 990)), append(busy, percentile(b.took, 990))
		quietAll, busyAll = append(quietAll, q.took...), append(busyAll, b.took...)
		quietSpells, busySpells = append(quietSpells, longer(q.spells, spellsPerReload)...), append(busySpells, longer(b.spells, spellsPerReload)...)
	}
	slices.Sort(quietAll)
	slices.Sort(busyAll)
	calmQuiet, stolenQuiet := calmest(quietSpells)
	calmBusy, stolenBusy := calmest(busySpells)
	rarely := medianRatio(inAMinute)
	name := "authz, 5,000 checks a second, p99 while 800 modules are reloaded"
	switch {
	case what.one:
		name += ", one of them changed"
	case what.reached:
		name += ", all of them reached"
	}
	return row{
		name: name, ours: median(busy), floor: median(quiet),
		note: fmt.Sprintf("floor: without reloads; %d reloads in %s, %.2f s of CPU each; if one came in a minute p99 %s and %s, ratio %.2f (%s); p50 %s and %s; in the third of the time in which the host kept the processors least (at most %d and %d ms in each %d), p99 %s and %s; goal 1.1",
			reloads, time.Duration(o.rounds)*2*o.each, reloading.Seconds()/float64(max(reloads, 1)),
			micro(rarely.ours), micro(rarely.floor), float64(rarely.ours)/float64(rarely.floor), rarely.note, micro(percentile(busyAll, 500)), micro(percentile(quietAll, 500)),
			stolenBusy.Milliseconds(), stolenQuiet.Milliseconds(), (spellsPerReload * spellLength).Milliseconds(), micro(percentile(calmBusy, 990)), micro(percentile(calmQuiet, 990))),
	}, nil
}

// untilAllowed waits for the first bundle.
func untilAllowed(ctx context.Context, addr string) error {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for pause(ctx, 50*time.Millisecond) == nil {
		if resp, err := authv3.NewAuthorizationClient(conn).Check(ctx, checkRequest("/api/orders/1")); err == nil && resp.GetStatus().GetCode() == int32(codes.OK) {
			return nil
		}
	}
	return fmt.Errorf("no bundle is in force within a minute")
}

// differentBundles is how many there are: authz keeps of modules what the one before had.
const differentBundles = 8

// bundleServer serves a bundle that is another one at each request, unless frozen.
type bundleServer struct {
	address string
	server  *http.Server
	bundles [][]byte // made before anything is measured
	frozen  atomic.Bool
	served  atomic.Int64
	last    atomic.Pointer[string]
}

// serveBundles serves so many modules. If all are reached, a decision looks at one of
// them, which the request names.
func serveBundles(ctx context.Context, modules int, what reloaded) (*bundleServer, error) {
	texts := map[string]string{"authz.rego": rule}
	if what.reached {
		texts["authz.rego"] = strings.Replace(rule, "allow if {\n", "allow if {\n\tnot data.teams[input.attributes.request.http.headers[\"x-team\"]].rule0\n", 1)
	}
	for i := range modules - 1 {
		var text strings.Builder
		fmt.Fprintf(&text, "package teams.team%d\n\n", i)
		for r := range 10 {
			fmt.Fprintf(&text, "rule%d if {\n\tinput.attributes.request.http.method == \"GET\"\n\tsome role in data.users[input.attributes.request.http.headers[\"x-user\"]]\n\trole == \"r%d-%d\"\n}\n\n", r, i, r)
		}
		texts[fmt.Sprintf("team%d.rego", i)] = text.String()
	}
	b := new(bundleServer)
	for n := range differentBundles {
		b.bundles = append(b.bundles, packed(texts, n, what.one))
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b.address = l.Addr().String()
	b.server = &http.Server{Handler: b, ReadHeaderTimeout: time.Minute}
	go func() { _ = b.server.Serve(l) }()
	return b, nil
}

func (b *bundleServer) stop() { _ = b.server.Close() }

// ServeHTTP implements http.Handler.
func (b *bundleServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if last := b.last.Load(); last != nil && b.frozen.Load() && r.Header.Get("If-None-Match") == *last {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	n := b.served.Add(1)
	tag := fmt.Sprintf(`"%d"`, n)
	b.last.Store(&tag)
	w.Header().Set("ETag", tag)
	w.Header().Set("Content-Type", "application/gzip")
	_, _ = w.Write(b.bundles[n%differentBundles])
}

// packed is the nth bundle of these modules, one or each with a rule of its own. What is
// decided where one module is reached does not depend on that, and where all are it does.
func packed(modules map[string]string, n int, one bool) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	t := tar.NewWriter(z)
	add := func(name, text string) {
		_ = t.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(text))})
		_, _ = t.Write([]byte(text))
	}
	add("/.manifest", fmt.Sprintf(`{"revision": "%d"}`, n))
	add("/data.json", fmt.Sprintf(`{"n": %d}`, n))
	for name, text := range modules {
		if !one || name == "team7.rego" {
			text += fmt.Sprintf("\nedition := %d\n", n)
		}
		add("/"+name, text)
	}
	_ = t.Close()
	_ = z.Close()
	return out.Bytes()
}
