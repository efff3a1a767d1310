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
	atRest, err := n.atRest(ctx, o)
	if err != nil {
		return nil, err
	}
	var rows []row
	for _, kind := range []string{anew, again} {
		r, err := attestations(ctx, o, w, kind, side{load: load{address: n.socket}, server: n.process}, side{load: load{address: floorSocket}, server: floor})
		if err != nil {
			return rows, err
		}
		r.note += fmt.Sprintf(", at rest %.1f; goal %d mCPU", atRest, o.attestations/2)
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

// atRest is what the agent uses while nobody asks, in thousandths of a core.
func (n *nodeAgent) atRest(ctx context.Context, o options) (float64, error) {
	before, err := n.cpu()
	if err != nil {
		return 0, err
	}
	if err := pause(ctx, 4*o.each); err != nil {
		return 0, err
	}
	after, err := n.cpu()
	return float64(after-before) / float64(4*o.each) * 1000, err
}

// attestations lets the workloads ask ours and the floor in turn, o.attestations times
// in a second, all together. The note has the median of what ours needs more than the
// floor of the same round.
func attestations(ctx context.Context, o options, w *workloads, kind string, ours, floor side) (row, error) {
	var measured []row
	var more []time.Duration
	for range o.rounds {
		var used [2]time.Duration
		var rate float64
		for i, s := range []side{floor, ours} {
			before, err := s.server.cpu()
			if err != nil {
				return row{}, err
			}
			begin := time.Now()
			done, err := w.call(task{Kind: kind, Socket: s.load.address, Every: time.Second * time.Duration(o.workloads) / time.Duration(o.attestations), For: o.each})
			if err != nil {
				return row{}, err
			}
			after, err := s.server.cpu()
			if err != nil {
				return row{}, err
			}
			used[i], rate = (after-before)/time.Duration(done), float64(done)/time.Since(begin).Seconds()
		}
		measured = append(measured, row{name: "attestation of a process, " + kind, ours: used[1], floor: used[0], rate: rate})
		more = append(more, used[1]-used[0])
		if ctx.Err() != nil {
			return row{}, ctx.Err()
		}
	}
	r := medianRatio(measured)
	perSecond := func(d time.Duration) float64 { return float64(d) * float64(o.attestations) / float64(time.Millisecond) }
	r.note += fmt.Sprintf("; %.1f mCPU, of which %.1f more than the floor", perSecond(r.ours), perSecond(median(more)))
	return r, nil
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
