package stack

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/cmd/writ/internal/supervise"
	"github.com/writ-mesh/writ/internal/atomicfile"
	"github.com/writ-mesh/writ/nodeagent/bootstrap"
	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/model"
	nodeagentpb "github.com/writ-mesh/writ/proto/writ/nodeagent/v1"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

// run is a replica's processes. What of the replica may change while they go on
// is guarded by the stack's mutex; the rest stays as it was at the start.
type run struct {
	replica   replica
	processes []*process
	// name and object are those of the replica, program its program, nil if there
	// is none to start, and apps the ports that it is to listen on.
	name    string
	object  model.Ref
	program *process
	apps    []uint32
	// heard is the process ID of the program when it was last seen to listen.
	heard atomic.Int64
}

func (r *run) stop() {
	var wg sync.WaitGroup
	for _, p := range r.processes {
		wg.Go(p.stop)
	}
	wg.Wait()
}

// process is a supervised process with its log.
type process struct {
	*supervise.Handle
	log *os.File
}

func (p *process) stop() {
	p.Stop()
	_ = p.log.Close()
}

// reconcile makes what runs be what is wanted.
func (s *Stack) reconcile(ctx context.Context, want plan) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted := want.byKey()
	for key, r := range s.runs {
		if w, ok := wanted[key]; !ok || !r.replica.sameProcesses(w) {
			r.stop()
			delete(s.runs, key)
		}
	}
	for _, r := range want.replicas {
		if old := s.runs[r.key()]; old != nil {
			old.replica = r // what has changed comes to its proxy from pilot
			continue
		}
		started, err := s.startReplica(ctx, r)
		if err != nil {
			return err
		}
		s.runs[r.key()] = started
	}
	return nil
}

func (s *Stack) startReplica(ctx context.Context, r replica) (*run, error) {
	todo := make([]supervise.Process, 0, 2)
	envoy, err := s.proxy(r)
	if err != nil {
		return nil, err
	}
	todo = append(todo, envoy)
	if len(r.command) > 0 {
		program, err := s.program(r)
		if err != nil {
			return nil, err
		}
		todo = append(todo, program)
	}
	out := &run{replica: r, name: r.instance.Name, object: r.object}
	for _, p := range todo {
		started, err := s.start(ctx, p)
		if err != nil {
			out.stop()
			return nil, err
		}
		out.processes = append(out.processes, started)
	}
	if len(r.command) > 0 {
		out.program = out.processes[1]
		for _, p := range r.instance.Spec.Ports {
			out.apps = append(out.apps, p.App)
		}
	}
	return out, nil
}

// proxy gives the Envoy of a replica. It is registered with the node agent by
// its process ID as soon as it runs; until then the agent lets it wait.
func (s *Stack) proxy(r replica) (supervise.Process, error) {
	id := meshdir.ProxyID(r.instance)
	data, err := bootstrap.Bootstrap(bootstrap.Options{
		NodeID: id, Cluster: r.instance.Name, Address: r.admin, AgentSocket: s.p.socket("nodeagent"), Secret: s.proxyKey.Secret(id),
	})
	if err != nil {
		return supervise.Process{}, fmt.Errorf("%s: %w", r.where, err)
	}
	name := "envoy-" + r.instance.Namespace + "-" + r.instance.Name
	file := s.p.file("envoy", name+".json")
	if err := atomicfile.Write(file, data, 0o600); err != nil {
		return supervise.Process{}, err
	}
	level := s.opts.EnvoyLogLevel
	if level == "" {
		level = "warning"
	}
	return supervise.Process{
		Name: name, Dir: s.p.state, Env: os.Environ(), Grace: 2 * time.Second,
		Command: []string{
			s.opts.Envoy, "-c", file, "--disable-hot-restart", "--concurrency", "1", "--log-level", level,
			"--drain-time-s", "5", "--drain-strategy", "immediate", "--file-flush-interval-msec", "100",
		},
		Started: func(pid int) { go s.register(pid, id) },
	}, nil
}

// register tells the node agent which workload a process is, an Envoy or a
// program. The agent may be down at the moment; the process waits for it anyhow.
func (s *Stack) register(pid int, proxyID string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := poll(ctx, time.Minute, func() error {
		_, err := s.agentAdmin.RegisterProcess(ctx, &nodeagentpb.RegisterProcessRequest{Pid: int32(pid), ProxyId: proxyID})
		if status.Code(err) == codes.NotFound {
			return nil // it has ended
		}
		return err
	})
	if err != nil {
		s.log.WarnContext(ctx, "a process could not be registered with the node agent",
			slog.String("proxy", proxyID), slog.Int("pid", pid), slog.Any("error", err))
	}
}

// program gives the program of a replica. It is registered like its Envoy, so that
// it finds its own identity at the agent's socket.
func (s *Stack) program(r replica) (supervise.Process, error) {
	path, err := lookUp(s.p.dir, s.p.bin, r.command[0])
	if err != nil {
		return supervise.Process{}, fmt.Errorf("%s: spec.command: %w", r.where, err)
	}
	proxy := fmt.Sprintf("http://%s:%d", r.address, model.ExplicitProxyPort)
	vars := map[string]string{
		"PATH": s.p.bin + string(os.PathListSeparator) + os.Getenv("PATH"), "HOME": os.Getenv("HOME"),
		"http_proxy": proxy, "HTTP_PROXY": proxy, "https_proxy": proxy, "HTTPS_PROXY": proxy,
		"ADDRESS": r.address.String(), "SPIFFE_ENDPOINT_SOCKET": s.p.unix("nodeagent"),
	}
	for i, p := range r.instance.Spec.Ports {
		if i == 0 {
			vars["PORT"] = fmt.Sprint(p.App)
		}
		vars["PORT_"+envName(p.Name)] = fmt.Sprint(p.App)
	}
	maps.Copy(vars, r.env)
	env := make([]string, 0, len(vars))
	for _, k := range slices.Sorted(maps.Keys(vars)) {
		env = append(env, k+"="+vars[k])
	}
	return supervise.Process{
		Name: "app-" + r.instance.Namespace + "-" + r.instance.Name, Dir: s.p.dir, Env: env, Grace: 3 * time.Second,
		Command: append([]string{path}, r.command[1:]...),
		Started: func(pid int) { go s.register(pid, meshdir.ProxyID(r.instance)) },
	}, nil
}

func envName(port string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' {
			return r - 'a' + 'A'
		}
		if r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, port)
}

// report writes run.json and the ready file. Pilot may be starting anew just then.
func (s *Stack) report(ctx context.Context) error {
	var st *pilotpb.GetStatusResponse
	err := s.waitFor(ctx, "writ-pilot", func(ctx context.Context) (err error) {
		st, err = s.status(ctx)
		return err
	})
	if err != nil {
		return err
	}
	r := s.ready(st.GetServing())
	s.reported, s.reportedStatus = r, st
	if err := r.write(s.p.file(runFile)); err != nil {
		return err
	}
	if s.opts.ReadyFile == "" {
		return nil
	}
	return r.write(s.opts.ReadyFile)
}

// Begun tells what runs, and the status of pilot, as it was when Up returned. It is
// called before Follow.
func (s *Stack) Begun() (*Ready, *pilotpb.GetStatusResponse) { return s.reported, s.reportedStatus }

func (s *Stack) ready(revision uint64) *Ready {
	r := &Ready{
		Revision: fmt.Sprint(revision), TrustDomain: s.trustDomain, PID: os.Getpid(), Logs: s.p.file("logs"),
		Workloads: []ReadyWorkload{}, Gateways: []ReadyGateway{},
		Services: map[string]string{"ca": s.caAddr, "pilot": s.pilotAddr, "authz": s.p.unix("authz"), "ratelimit": s.p.unix("ratelimit")},
		Admin:    map[string]string{"ca": s.p.unix("ca-admin"), "pilot": s.p.unix("pilot-admin"), "nodeagent": s.p.unix("nodeagent-admin"), "ratelimit": s.p.unix("ratelimit-admin")},
	}
	for _, p := range s.last.replicas {
		admin := fmt.Sprintf("http://%s:%d", p.admin, model.AdminPort)
		if p.gateway() {
			namespace, name, _ := strings.Cut(p.instance.Spec.Gateway, "/")
			r.Gateways = append(r.Gateways, ReadyGateway{Name: name, Namespace: namespace, URL: p.url, Admin: admin})
			continue
		}
		w := ReadyWorkload{
			Name: p.instance.Name, Namespace: p.instance.Namespace, ServiceAccount: p.instance.Spec.ServiceAccount, Workload: p.workload,
			Address: p.address.String(), Ports: make(map[string]uint32), Admin: admin,
			Proxy: fmt.Sprintf("http://%s:%d", p.address, model.ExplicitProxyPort),
		}
		for _, port := range p.instance.Spec.Ports {
			w.Ports[port.Name] = port.Port
		}
		r.Workloads = append(r.Workloads, w)
	}
	return r
}
