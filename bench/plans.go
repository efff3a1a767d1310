package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// plansTable is the table of the plans row.
const plansTable = "customers"

// plans has ratelimit load the plans of a million callers, from a file and from a real
// Redis, and changes one of them again and again.
func plans(ctx context.Context, o options) ([]row, error) {
	rows, err := plansOfFile(ctx, o)
	if err != nil {
		return rows, err
	}
	redis, err := plansOfRedis(ctx, o)
	return append(rows, redis...), err
}

// planned is a ratelimit that has a table of plans.
type planned struct {
	*process
	conn    *grpc.ClientConn
	callers int
	started time.Duration // until it knew the last caller
}

// startPlanned starts it with these lines of configuration, and with a policy that is kept
// from the last time: there is no pilot. It waits until the last caller has its plan.
func startPlanned(ctx context.Context, o options, dir string, lines ...string) (*planned, error) {
	state, listen := filepath.Join(dir, "state"), "unix://"+filepath.Join(dir, "s")
	policy, err := protojson.Marshal(&configpb.QuotaPolicy{Name: "q", Namespace: "default", Limits: []*configpb.Limit{{
		Per: []string{"source.principal"}, Requests: 1, Every: durationpb.New(time.Hour),
		Plan: &configpb.QuotaPlan{Table: plansTable, By: "source.principal"}, Mode: configpb.QuotaLocal,
	}}})
	if err == nil {
		policy, err = json.Marshal([]json.RawMessage{policy})
	}
	if err == nil {
		err = os.MkdirAll(state, 0o700)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(state, "quota-policies.json"), policy, 0o600)
	}
	missing, conf := filepath.Join(dir, "missing"), filepath.Join(dir, "ratelimit.yaml")
	if err == nil {
		err = os.WriteFile(conf, []byte(strings.Join(append([]string{
			"listen: " + listen, "state: " + state, "pilot: 127.0.0.1:1", "log: {level: error}",
			"credential: {ca: \"127.0.0.1:1\", dir: " + missing + ", token_file: " + missing + ", trust_bundle: " + missing + ", trust_domain: bench.test}",
		}, lines...), "\n")+"\n"), 0o600)
	}
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	p := &planned{callers: o.callers}
	if p.process, err = launchWithin(ctx, 2*time.Minute, listen, filepath.Join(o.bin, "writ-ratelimit"), "-config", conf); err != nil {
		return nil, err
	}
	if p.conn, err = grpc.NewClient(listen, grpc.WithTransportCredentials(insecure.NewCredentials())); err == nil {
		err = p.until(ctx, o.callers-1, 600)
	}
	if err != nil {
		p.stop()
		return nil, err
	}
	p.started = time.Since(begin)
	return p, nil
}

// until asks about a caller until it has so many requests.
func (p *planned) until(ctx context.Context, caller int, requests uint32) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	client := rlsv3.NewRateLimitServiceClient(p.conn)
	for {
		resp, err := client.ShouldRateLimit(ctx, &rlsv3.RateLimitRequest{Domain: "writ", Descriptors: []*commonv3.RateLimitDescriptor{{
			Entries: []*commonv3.RateLimitDescriptor_Entry{
				{Key: configpb.QuotaPolicyKey, Value: "default/q"},
				{Key: configpb.QuotaLimitKey, Value: "0"},
				{Key: "source.principal", Value: callerName(caller)},
			},
		}}})
		switch {
		case err != nil:
			return err
		case resp.GetStatuses()[0].GetCurrentLimit().GetRequestsPerUnit() == requests:
			return nil
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("caller %d has not %d requests: %w: %s", caller, requests, err, p.out)
		}
	}
}

// changes makes some changes, and gives the medians of the time from each to the first
// decision that goes by it, and of the processor time of ratelimit. prepare gives what
// makes a change.
func (p *planned) changes(ctx context.Context, times int, prepare func(caller int, requests uint32) (func() error, error)) (took, cpu time.Duration, err error) {
	var all, used []time.Duration
	for n := range times {
		caller, requests := n*7919%p.callers, uint32(1000+n) //nolint:gosec // a few
		change, err := prepare(caller, requests)
		if err != nil {
			return 0, 0, err
		}
		before, err := p.cpu()
		if err != nil {
			return 0, 0, err
		}
		begin := time.Now()
		if err := change(); err != nil {
			return 0, 0, err
		}
		if err := p.until(ctx, caller, requests); err != nil {
			return 0, 0, err
		}
		all = append(all, time.Since(begin))
		after, err := p.cpu()
		if err != nil {
			return 0, 0, err
		}
		used = append(used, after-before)
	}
	return median(all), median(used), nil
}

func (p *planned) stop() {
	if p.conn != nil {
		_ = p.conn.Close()
	}
	p.process.stop()
}

func plansOfFile(ctx context.Context, o options) ([]row, error) {
	dir := filepath.Join(o.dir, "file")
	folder := filepath.Join(dir, "plans")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	path, own := filepath.Join(folder, plansTable+".plans"), map[int]uint32{} // own of callers that were changed
	write := func(plan string) (rename func() error, err error) {
		return func() error { return os.Rename(path+".new", path) }, writePlans(path+".new", o.callers, plan, own)
	}
	rename, err := write("gold")
	if err == nil {
		err = rename()
	}
	if err != nil {
		return nil, err
	}
	p, err := startPlanned(ctx, o, dir, "plans: {folder: "+folder+"}")
	if err != nil {
		return nil, err
	}
	defer p.stop()
	cpu, err := p.cpu()
	if err != nil {
		return nil, err
	}
	loaded := p.rss()
	took, used, err := p.changes(ctx, 2*o.rounds+1, func(caller int, requests uint32) (func() error, error) {
		own[caller] = requests
		return write("gold")
	})
	if err != nil {
		return nil, err
	}
	peak := p.peak()
	if rename, err = write("free"); err != nil { // each line is another one
		return nil, err
	}
	begin := time.Now()
	if err := rename(); err != nil {
		return nil, err
	}
	if err := p.until(ctx, o.callers-1, 60); err != nil {
		return nil, err
	}
	return []row{{
		name: fmt.Sprintf("ratelimit, one of %d callers of a file changed", o.callers), ours: used,
		note: fmt.Sprintf("in force %.0f ms after the rename; started in %.1f s (%.1f s of CPU), %.0f MiB resident, %.0f at most; all lines changed: %.1f s, %.0f MiB at most; goals 1 s, 500 MiB",
			ms(took), p.started.Seconds(), cpu.Seconds(), loaded, peak, time.Since(begin).Seconds(), p.peak()),
	}}, nil
}

func plansOfRedis(ctx context.Context, o options) ([]row, error) {
	dir := filepath.Join(o.dir, "redis")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	redis, addr, err := launchRedis(ctx, o)
	if err != nil {
		return nil, err
	}
	stopRedis := sync.OnceFunc(redis.stop)
	defer stopRedis()
	const key = "writ:plans:{" + plansTable + "}"
	if err := pipeRedis(ctx, addr, func(w io.Writer) {
		for i := range o.callers {
			command(w, "HSET", key, callerName(i), callerHas(i, "gold"))
		}
		command(w, "SET", key+":head", plansHead)
	}); err != nil {
		return nil, err
	}
	conf := []string{"plans: {redis: [" + plansTable + "]}", "redis: {address: \"" + addr + "\"}"}
	p, err := startPlanned(ctx, o, dir, conf...)
	if err != nil {
		return nil, err
	}
	stop := sync.OnceFunc(p.stop)
	defer stop()
	cpu, err := p.cpu()
	if err != nil {
		return nil, err
	}
	loaded := p.rss()
	took, used, err := p.changes(ctx, 4*o.rounds+1, func(caller int, requests uint32) (func() error, error) {
		return func() error {
			return pipeRedis(ctx, addr, func(w io.Writer) {
				command(w, "MULTI")
				command(w, "HSET", key, callerName(caller), fmt.Sprint(requests))
				command(w, "XADD", key+":changes", "MAXLEN", "~", "10000", "*", "caller", callerName(caller))
				command(w, "EXEC")
			})
		}, nil
	})
	if err != nil {
		return nil, err
	}
	peak := p.peak()
	kept := filepath.Join(dir, "state", "plans-"+plansTable+".plans")
	for _, err := os.Stat(kept); err != nil; _, err = os.Stat(kept) {
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return nil, err
		}
	}
	stop()
	stopRedis()
	again, err := startPlanned(ctx, o, dir, conf...)
	if err != nil {
		return nil, err
	}
	defer again.stop()
	return []row{{
		name: fmt.Sprintf("ratelimit, one of %d callers in Redis changed", o.callers), ours: used,
		note: fmt.Sprintf("in force after %.0f ms, redis-cli included; started in %.1f s (%.1f s of CPU), %.0f MiB resident, %.0f at most; again without Redis in %.1f s; goals 1 s, 500 MiB",
			ms(took), p.started.Seconds(), cpu.Seconds(), loaded, peak, again.started.Seconds()),
	}}, nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// plansHead is what a table has beside its callers.
const plansHead = "numbers n\nplan free 60\nplan gold 600\ndefault free\n"

// callerName has 46 bytes, as identities have.
func callerName(n int) string { return fmt.Sprintf("cluster.local/ns/customers/sa/customer-%07d", n) }

// callerHas is a caller's plan; one in sixteen has numbers of its own.
func callerHas(n int, plan string) string {
	if n%16 == 1 {
		return fmt.Sprint(n % 1000)
	}
	return plan
}

// writePlans writes a table, in which some callers have requests of their own.
func writePlans(path string, callers int, plan string, own map[int]uint32) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600) //nolint:gosec // the folder of this run
	if err != nil {
		return err
	}
	defer func() { err = cmp.Or(err, f.Close()) }()
	w := bufio.NewWriter(f)
	_, _ = io.WriteString(w, plansHead)
	for i := range callers {
		has := callerHas(i, plan)
		if n, changed := own[i]; changed {
			has = fmt.Sprint(n)
		}
		_, _ = fmt.Fprintf(w, "caller %s %s\n", callerName(i), has)
	}
	return w.Flush()
}

// pipeRedis has Redis do commands.
func pipeRedis(ctx context.Context, addr string, write func(io.Writer)) error {
	host, port, _ := strings.Cut(addr, ":")
	cli := exec.CommandContext(ctx, "redis-cli", "-h", host, "-p", port, "--pipe") //nolint:gosec // an address of this run
	in, err := cli.StdinPipe()
	if err != nil {
		return err
	}
	var out strings.Builder
	cli.Stdout, cli.Stderr = &out, &out
	if err := cli.Start(); err != nil {
		return err
	}
	w := bufio.NewWriter(in)
	write(w)
	err = cmp.Or(w.Flush(), in.Close())
	if err = cmp.Or(cli.Wait(), err); err != nil {
		return fmt.Errorf("redis-cli: %w: %s", err, out.String())
	}
	return nil
}

// command writes one as Redis reads it.
func command(w io.Writer, words ...string) {
	_, _ = fmt.Fprintf(w, "*%d\r\n", len(words))
	for _, word := range words {
		_, _ = fmt.Fprintf(w, "$%d\r\n%s\r\n", len(word), word)
	}
}
