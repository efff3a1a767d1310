package stack

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/writ-mesh/writ/cmd/writ/internal/supervise"
	"github.com/writ-mesh/writ/internal/atomicfile"
	"github.com/writ-mesh/writ/internal/pemroots"
	"github.com/writ-mesh/writ/pilot/meshdir"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// node is the name of the one node of a local stack.
const node = "local"

// PlansFolder is where a mesh directory has its tables of plans.
const PlansFolder = "plans"

// logLimit is the size in bytes from which a log file is moved aside at start.
const logLimit = 16 << 20

// tokenCheck is how often it is seen whether a service needs to join again.
const tokenCheck = 2 * time.Second

// daemon is one of the five services as the stack runs it.
type daemon struct {
	// name is that of the folder and the identity, for example pilot.
	name string
	// identity is the path of the SPIFFE ID; empty for the authority itself,
	// which signs its own.
	identity string
	config   map[string]any
}

// daemons gives the services with their configurations.
func (s *Stack) daemons() []daemon {
	ca := map[string]any{
		"trust_domain": s.trustDomain, "state": s.p.file("ca"), "listen": s.caAddr,
		"admin": s.p.unix("ca-admin"), "pilot": s.pilotAddr, "compliance_policy": s.compliance,
	}
	if life := s.opts.CertificateLife; life > 0 {
		ca["workload_ttl"] = life.String()
	}
	if life := s.opts.ServiceCertificateLife; life > 0 {
		ca["service_ttl"] = life.String()
	}
	maps.Copy(ca, s.authority)
	ratelimit := map[string]any{"listen": s.p.unix("ratelimit"), "admin": s.p.unix("ratelimit-admin"), "pilot": s.pilotAddr, "state": s.p.file("ratelimit")}
	ratelimit["plans"] = map[string]any{"folder": filepath.Join(s.p.dir, PlansFolder)}
	if s.opts.Redis != "" {
		ratelimit["redis"] = map[string]any{"address": s.opts.Redis}
	}
	maps.Copy(ratelimit, s.ratelimit)
	all := []daemon{
		{"ca", "", ca},
		{"pilot", "writ/pilot", map[string]any{
			"mesh": s.p.dir, "instances": s.p.file(instancesFile), "listen": s.pilotAddr,
			"admin": s.p.unix("pilot-admin"), "state": s.p.file("pilot"),
			"reserved_folders": s.reserved.Folders, "reserved_addresses": reservedAddresses(s.reserved),
			"deciders": map[string]any{"authz": s.p.unix("authz"), "ratelimit": s.p.unix("ratelimit")},
		}},
		{"authz", "writ/authz", map[string]any{"listen": s.p.unix("authz"), "pilot": s.pilotAddr, "state": s.p.file("authz")}},
		{"ratelimit", "writ/ratelimit", ratelimit},
		{"nodeagent", "writ/node/" + node, map[string]any{
			"node": node, "socket": s.p.unix("nodeagent"), "admin": s.p.unix("nodeagent-admin"),
			"pilot": s.pilotAddr, "state": s.p.file("nodeagent"),
		}},
	}
	for i, d := range all {
		d.config["monitoring"] = fmt.Sprintf("%s:%d", s.addr.at(0, 2+i), monitoringPort)
		if d.identity != "" {
			d.config["credential"] = map[string]any{
				"ca": s.caAddr, "trust_bundle": s.p.file("ca", "bundle.pem"), "token_file": s.p.file(d.name, "join-token"),
				"dir": s.p.file(d.name, "identity"), "trust_domain": s.trustDomain, "compliance_policy": s.compliance,
			}
		}
	}
	return all
}

func reservedAddresses(r meshdir.Reserved) []string {
	var out []string
	for _, block := range r.Addresses {
		out = append(out, block.String())
	}
	return out
}

// startDaemons starts all five. The authority comes first; the others wait for
// it by themselves.
func (s *Stack) startDaemons(ctx context.Context) error {
	for _, d := range s.daemons() {
		data, err := yaml.Marshal(d.config)
		if err != nil {
			return err
		}
		file := s.p.file(d.name, "config.yaml")
		if err := atomicfile.Write(file, data, 0o600); err != nil {
			return err
		}
		p := supervise.Process{
			Name: "writ-" + d.name, Command: []string{filepath.Join(s.p.bin, "writ-"+d.name), "-config", file},
			Env: os.Environ(), Dir: s.p.state, Grace: 8 * time.Second,
		}
		if _, err := os.Stat(p.Command[0]); err != nil {
			return fmt.Errorf("%w: build all binaries with `make build`", err)
		}
		if d.identity != "" {
			p.Before = func(ctx context.Context) error { return s.giveToken(ctx, d) }
		}
		started, err := s.start(ctx, p)
		if err != nil {
			return err
		}
		s.services = append(s.services, started)
		if d.name == "ca" {
			if err := s.waitForCA(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// start opens the process's log and puts it under supervision.
func (s *Stack) start(ctx context.Context, p supervise.Process) (*process, error) {
	path := s.p.file("logs", p.Name+".log")
	f, err := supervise.LogFile(path, logLimit)
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", p.Name, err)
	}
	p.Output = f
	return &process{supervise.Start(ctx, p, s.log.With(slog.String("log", path))), f}, nil
}

// giveToken puts a fresh join token where the service looks for it. The service
// uses it only if it has no certificate left. While the authority is away no
// token can be made; then the service starts with the certificate it has.
func (s *Stack) giveToken(ctx context.Context, d daemon) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	resp, err := s.caAdmin.CreateJoinToken(ctx, &capb.CreateJoinTokenRequest{SpiffeId: "spiffe://" + s.trustDomain + "/" + d.identity})
	if err != nil {
		if _, serr := os.Stat(s.p.file(d.name, "identity", "identity.pem")); serr == nil {
			return nil
		}
		return fmt.Errorf("join token for %s: %w", d.name, err)
	}
	return atomicfile.Write(s.p.file(d.name, "join-token"), []byte(resp.GetToken()+"\n"), 0o600)
}

// renewTokens gives a token to a service whose certificate has expired, as after
// a laptop's sleep, or whose root was replaced in a hurry: it cannot renew any
// more, only join again. It runs until ctx ends.
func (s *Stack) renewTokens(ctx context.Context) {
	tick := time.NewTicker(tokenCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, d := range s.daemons() {
			if d.identity == "" || !useless(s.p.file(d.name, "identity", "identity.pem"), s.p.file("ca", "bundle.pem"), time.Now()) {
				continue
			}
			if err := s.giveToken(ctx, d); err != nil {
				s.log.WarnContext(ctx, "a service whose certificate is of no use any more gets no token yet", slog.String("service", d.name), slog.Any("error", err))
			}
		}
	}
}

// useless says that the first certificate in a PEM file is not valid any more, or
// not under a root of the bundle. Files that cannot be read say nothing.
func useless(path, bundle string, now time.Time) bool {
	data, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	block, rest := pem.Decode(data)
	if block == nil {
		return false
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return false
	}
	above := x509.NewCertPool()
	above.AppendCertsFromPEM(rest)
	roots, err := pemroots.Load(bundle)
	if err != nil {
		return now.After(cert.NotAfter)
	}
	_, err = cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: above, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err != nil
}

func (s *Stack) waitForCA(ctx context.Context) error {
	return s.waitFor(ctx, "writ-ca", func(ctx context.Context) error {
		_, err := s.caAdmin.GetBundle(ctx, &capb.GetBundleRequest{})
		return err
	})
}

// waitFor polls until f works. A process that keeps dying is reported with the
// end of its log instead of being waited for in vain.
func (s *Stack) waitFor(ctx context.Context, process string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		if s.dying(process) {
			return fmt.Errorf("%s does not start: %s", process, s.lastLine(process))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w (log: %s)", process, errors.Join(err, ctx.Err()), s.p.file("logs", process+".log"))
		case <-tick.C:
		}
	}
}

// dying says that a process has been started again three times or more.
func (s *Stack) dying(process string) bool {
	for _, h := range s.services {
		if h.Name() == process {
			return h.State().Restarts >= 3
		}
	}
	return false
}

// lastLine gives the last line of a process's log.
func (s *Stack) lastLine(process string) string {
	f, err := os.Open(s.p.file("logs", process+".log"))
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	const tail = 4096
	if info, err := f.Stat(); err == nil && info.Size() > tail {
		if _, err := f.Seek(-tail, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return lastLine(string(data))
}

// dialUnix connects to a socket that may not be there yet: it tries again soon.
func dialUnix(path string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+path,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 200 * time.Millisecond}}))
}
