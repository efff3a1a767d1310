package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// fewPolicies is what many are compared with.
	fewPolicies = 10
	// policyCallers are identities that call, each on connections of its own.
	policyCallers, policyConnections = 5, 3
)

// policyKinds are what policies look at.
var policyKinds = []string{"principals", "paths", "both"}

// policies measures what an Envoy spends on a request with many AuthorizationPolicies on
// its workload, by what it spends with few: by the caller's identity, by the path, half
// of them by the one and half by the other. The same mesh has them all. Then one policy
// is edited.
func policies(ctx context.Context, o options) ([]row, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "passed") })}
	go func() { _ = server.Serve(l) }()
	defer func() { _ = server.Close() }()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	files := map[string]string{"mtls.yaml": strictMTLS}
	for _, kind := range policyKinds {
		for _, n := range []int{fewPolicies, o.policies} {
			name := fmt.Sprintf("%s%d", kind, n)
			files[name+".yaml"] = fmt.Sprintf("apiVersion: local.writ.mesh/v1alpha1\nkind: LocalWorkload\nmetadata: {name: %[1]s, namespace: default, labels: {app: %[1]s}}\n"+
				"spec: {serviceAccount: b, ports: [{name: http, port: 8000, app: %[2]s}]}\n", name, port)
			for first := 0; first < n; first += policiesInFile {
				files[fmt.Sprintf("%s-%d.yaml", name, first)] = policyFile(name, kind, first, min(first+policiesInFile, n))
			}
		}
	}
	files["edited.yaml"] = editedPolicy("/never")
	m, err := upMesh(ctx, o, files)
	if err != nil {
		return nil, err
	}
	defer m.down()
	clients, err := m.policyClients(ctx, o.policies)
	if err != nil {
		return nil, err
	}
	var rows []row
	for _, kind := range policyKinds {
		r, err := m.comparePolicies(ctx, o, kind, clients)
		if err != nil {
			return rows, fmt.Errorf("%s: %w", kind, err)
		}
		rows = append(rows, r)
	}
	edited, err := m.editPolicy(ctx, o, clients[0])
	return append(rows, edited), err
}

// policiesInFile keeps files within what pilot reads.
const policiesInFile = 1000

// policyFile has the policies numbered from first to before end.
func policyFile(name, kind string, first, end int) string {
	var b strings.Builder
	for i := first; i < end; i++ {
		rule := fmt.Sprintf("{to: [{operation: {methods: [GET], paths: [%s]}}]}", policyPath(i))
		if byCaller(kind, i) {
			rule = fmt.Sprintf("{from: [{source: {principals: [cluster.local%s]}}], to: [{operation: {methods: [GET]}}]}", policyCaller(i))
		}
		fmt.Fprintf(&b, "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: %[1]s-%[2]d, namespace: default}\nspec: {selector: {matchLabels: {app: %[1]s}}, rules: [%[3]s]}\n", name, i, rule)
	}
	return b.String()
}

// editedPolicy is one more among many, on the workload whose policies are by path.
func editedPolicy(path string) string {
	return fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: edited, namespace: default}\nspec: {selector: {matchLabels: {edited: here}}, rules: [{to: [{operation: {paths: [%s]}}]}]}\n", path)
}

func byCaller(kind string, i int) bool { return kind == "principals" || kind == "both" && i%2 == 0 }

func policyPath(i int) string { return fmt.Sprintf("/team-%d/item-%d", i%100, i) }

func policyCaller(i int) string { return fmt.Sprintf("/ns/team-%d/sa/client-%d", i%100, i) }

// policyClients are the callers whom policies with the numbers of policyNumbers name.
func (m *runningMesh) policyClients(ctx context.Context, n int) (map[int]*http.Client, error) {
	out := map[int]*http.Client{}
	for _, of := range []int{fewPolicies, n} {
		for _, i := range policyNumbers(of) {
			if out[i] != nil {
				continue
			}
			cert, _, err := m.mint(ctx, policyCaller(i))
			if err != nil {
				return nil, err
			}
			out[i] = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxConnsPerHost: policyConnections, MaxIdleConnsPerHost: policyConnections, TLSClientConfig: &tls.Config{
				Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}, InsecureSkipVerify: true, //nolint:gosec // what the server does is measured
			}}}
		}
	}
	return out, nil
}

// policyNumbers are even, and spread over all.
func policyNumbers(n int) []int {
	var out []int
	for i := range policyCallers {
		out = append(out, i*n/policyCallers/2*2)
	}
	return slices.Compact(out)
}

// comparePolicies measures the Envoy with many policies and the one with few in turn.
func (m *runningMesh) comparePolicies(ctx context.Context, o options, kind string, clients map[int]*http.Client) (row, error) {
	counts := []int{fewPolicies, o.policies}
	envoys := make([]*process, len(counts))
	var rounds []row
	for range o.rounds {
		var perOp [2]time.Duration
		var rate float64
		for i, n := range counts {
			name := fmt.Sprintf("%s%d", kind, n)
			var err error
			if envoys[i], err = m.envoy(name + "-1"); err != nil {
				return row{}, err
			}
			load := policyLoad{address: m.addressOf(name + "-1"), kind: kind, n: n, clients: clients}
			if perOp[i], rate, err = load.measure(ctx, o, envoys[i]); err != nil {
				return row{}, fmt.Errorf("%d policies: %w", n, err)
			}
		}
		rounds = append(rounds, row{ours: perOp[1], floor: perOp[0], rate: rate})
	}
	out := medianRatio(rounds)
	out.name = fmt.Sprintf("%d policies by %s, of 10: CPU of the Envoy", o.policies, kind)
	out.note += fmt.Sprintf("; %.0f MiB resident, of %.0f; goal 1.2", envoys[1].rss(), envoys[0].rss())
	return out, nil
}

func (m *runningMesh) addressOf(workload string) string {
	return m.addresses[slices.Index(m.names, workload)]
}

// policyLoad is requests that policies allow, each of another policy.
type policyLoad struct {
	address, kind string
	n             int
	clients       map[int]*http.Client
}

func (l policyLoad) measure(ctx context.Context, o options, envoy *process) (perOp time.Duration, rate float64, err error) {
	if _, err := l.run(ctx, o.each/3); err != nil {
		return 0, 0, err
	}
	before, err := envoy.cpu()
	if err != nil {
		return 0, 0, err
	}
	begin := time.Now()
	ops, err := l.run(ctx, o.each)
	if err != nil {
		return 0, 0, err
	}
	took := time.Since(begin)
	after, err := envoy.cpu()
	return (after - before) / time.Duration(ops), float64(ops) / took.Seconds(), err
}

func (l policyLoad) run(ctx context.Context, length time.Duration) (int64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var ops atomic.Int64
	var wg sync.WaitGroup
	end := time.Now().Add(length)
	for _, i := range policyNumbers(l.n) {
		for range policyConnections {
			wg.Go(func() {
				for n := i; ctx.Err() == nil && time.Now().Before(end); n += policyCallers + 1 {
					path := policyPath(n % l.n)
					if byCaller(l.kind, n%l.n) {
						path = "/"
					}
					if _, err := get(ctx, l.clients[i], "https://"+l.address+path); err != nil {
						cancel(fmt.Errorf("%s: %w", path, err))
						return
					}
					ops.Add(1)
				}
			})
		}
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	if ops.Load() == 0 {
		return 0, fmt.Errorf("no request within %s", length)
	}
	return ops.Load(), nil
}

// editPolicy changes one policy among many and waits until the Envoy goes by it.
func (m *runningMesh) editPolicy(ctx context.Context, o options, client *http.Client) (row, error) {
	name := fmt.Sprintf("paths%d", o.policies)
	pilot, err := m.pilot()
	if err != nil {
		return row{}, err
	}
	envoy, err := m.envoy(name + "-1")
	if err != nil {
		return row{}, err
	}
	at := "https://" + m.addressOf(name+"-1")
	var all []row
	for round := range o.rounds {
		path := fmt.Sprintf("/edited-%d", round)
		before, envoyBefore, err := cpus(pilot, envoy)
		if err != nil {
			return row{}, err
		}
		begin := time.Now()
		text := strings.Replace(editedPolicy(path), "edited: here", "app: "+name, 1)
		if err := replace(filepath.Join(m.dir, "edited.yaml"), text); err != nil {
			return row{}, err
		}
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		err = wait(ctx, name, func() (bool, string) {
			_, err := get(ctx, client, at+path)
			return err == nil, fmt.Sprint(path, ": ", err)
		})
		cancel()
		if err != nil {
			return row{}, err
		}
		took := time.Since(begin)
		after, envoyAfter, err := cpus(pilot, envoy)
		if err != nil {
			return row{}, err
		}
		all = append(all, row{ours: after - before, note: fmt.Sprintf("%.2f s until the Envoy goes by it, which takes it %.2f s of CPU; pilot %.0f MiB resident", took.Seconds(), (envoyAfter - envoyBefore).Seconds(), pilot.rss())})
	}
	slices.SortFunc(all, func(a, b row) int { return int(a.ours - b.ours) })
	out := all[(len(all)-1)/2]
	out.name = fmt.Sprintf("one of %d policies changes: CPU of pilot", o.policies)
	return out, nil
}
