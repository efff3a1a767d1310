package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// realNode is the name of the real node agent's node.
const realNode = "n1"

// nodeAgent is a real writ-nodeagent that has joined an authority. There is no pilot:
// its workloads are registered.
type nodeAgent struct {
	*process
	socket     string // unix:///path
	monitoring string
}

func launchNodeAgent(ctx context.Context, o options, a *authority) (*nodeAgent, error) {
	dir := filepath.Join(a.dir, realNode)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	token, err := a.joinToken(ctx, nodeID(realNode))
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte(token), 0o600); err != nil {
		return nil, err
	}
	n := &nodeAgent{socket: "unix://" + filepath.Join(dir, "agent")}
	if n.monitoring, err = freeAddress(); err != nil {
		return nil, err
	}
	pilot, err := freeAddress()
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "nodeagent.yaml")
	text := fmt.Sprintf(`node: %s
socket: %s
admin: unix://%s/admin
state: %s/state
monitoring: %s
pilot: %s
attest_wait: 1m
credential: {ca: "%s", trust_bundle: %s, token_file: %s/token, dir: %s/credential, trust_domain: %s}
`, realNode, n.socket, dir, dir, n.monitoring, pilot, a.listen, a.bundleFile(), dir, dir, trustDomain)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}
	n.process, err = launch(ctx, n.socket, filepath.Join(o.bin, "writ-nodeagent"), "-config", conf)
	return n, err
}

// agent measures a real node agent on whose node many identities are registered and
// few processes run: its memory, and what it costs to recognize callers.
func agent(ctx context.Context, o options) ([]row, error) {
	a, err := launchAuthority(ctx, o, o.dir)
	if err != nil {
		return nil, err
	}
	defer a.stop()
	programs, sum, err := linkSelf(filepath.Join(o.dir, "w"), o.workloads)
	if err != nil {
		return nil, err
	}
	if err := a.register(ctx, o.registrations, func(i int) *capb.PutRegistrationRequest {
		facts := []string{fmt.Sprint("unix:uid:", os.Getuid()), fmt.Sprintf("unix:path:/opt/services/program-%d", i), "unix:sha256:" + sum}
		if i < len(programs) {
			facts = []string{facts[0], "unix:path:" + programs[i], "unix:sha256:" + sum}
		}
		return &capb.PutRegistrationRequest{SpiffeId: fmt.Sprintf("spiffe://%s/ns/default/sa/service-%d", trustDomain, i), Node: realNode, Facts: facts}
	}); err != nil {
		return nil, fmt.Errorf("register: %w", err)
	}
	n, err := launchNodeAgent(ctx, o, a)
	if err != nil {
		return nil, err
	}
	defer n.stop()
	w, err := launchWorkloads(ctx, programs, n.socket)
	if err != nil {
		return nil, err
	}
	defer func() { _ = w.stop() }()
	resident, err := n.settled(ctx)
	if err != nil {
		return nil, err
	}
	floor, floorSocket, err := workloadFloor(ctx, o)
	if err != nil {
		return nil, err
	}
	defer floor.stop()
	var rows []row
	for _, kind := range []string{anew, again} {
		least, err := attestations(ctx, o, w, task{Kind: kind, Socket: floorSocket}, floor)
		if err != nil {
			return nil, err
		}
		r, err := attestations(ctx, o, w, task{Kind: kind, Socket: n.socket}, n.process)
		if err != nil {
			return rows, err
		}
		r.floor = least.ours
		r.note += fmt.Sprintf("; goal %d mCPU", o.attestations/2)
		rows = append(rows, r)
	}
	return append(rows, row{
		name: fmt.Sprintf("node agent that may serve %d and serves %d", o.registrations, o.workloads),
		note: fmt.Sprintf("%.1f MiB resident, %.1f after the attestations, at most %.1f; goal 60", resident, n.rss(), n.peak()),
	}), nil
}

// settled waits until the agent has written down what it knows, and returns its
// resident memory in MiB.
func (n *nodeAgent) settled(ctx context.Context) (float64, error) {
	if err := pause(ctx, 10*time.Second); err != nil {
		return 0, err
	}
	return n.rss(), nil
}

// attestations lets the workloads do what they are told o.attestations times in a
// second, all together, and gives what the server needs for one.
func attestations(ctx context.Context, o options, w *workloads, t task, server *process) (row, error) {
	t.Every, t.For = time.Second*time.Duration(o.workloads)/time.Duration(o.attestations), 4*o.each
	before, err := server.cpu()
	if err != nil {
		return row{}, err
	}
	if err := pause(ctx, t.For); err != nil {
		return row{}, err
	}
	rest, err := server.cpu()
	if err != nil {
		return row{}, err
	}
	begin := time.Now()
	done, err := w.call(t)
	if err != nil {
		return row{}, err
	}
	passed := time.Since(begin)
	after, err := server.cpu()
	if err != nil {
		return row{}, err
	}
	idle := float64(rest-before) / t.For.Seconds()
	used := float64(after-rest) / passed.Seconds()
	return row{
		name: "attestation of a process, " + t.Kind, ours: (after - rest) / time.Duration(done), rate: float64(done) / passed.Seconds(),
		note: fmt.Sprintf("%.1f mCPU, of which %.1f also at rest", used/1e6, idle/1e6),
	}, nil
}

// workloadFloor starts this program as a server of the Workload API that recognizes
// nobody.
func workloadFloor(ctx context.Context, o options) (*process, string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	socket := "unix://" + filepath.Join(o.dir, "floor")
	p, err := launch(ctx, socket, self, "-be", "grpc", "-listen", socket)
	return p, socket, err
}

// linkSelf gives this program n names in dir; sum is its SHA-256.
func linkSelf(dir string, n int) (programs []string, sum string, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, "", err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	return linkProgram(self, dir, "workload", n)
}

// linkProgram copies a program to dir, once, under n names: so its processes are told
// apart by their paths.
func linkProgram(program, dir, name string, n int) (links []string, sum string, err error) {
	in, err := os.Open(program)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = in.Close() }()
	first := filepath.Join(dir, name)
	out, err := os.OpenFile(first, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o700) //nolint:gosec // a program
	if err != nil {
		return nil, "", err
	}
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(out, h), in)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	for i := 0; err == nil && i < n; i++ {
		links = append(links, fmt.Sprintf("%s-%d", first, i))
		err = os.Link(first, links[i])
	}
	return links, hex.EncodeToString(h.Sum(nil)), err
}
