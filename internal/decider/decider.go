// Package decider is what the services that Envoys ask have in common: where and
// from whom they take calls, and how they follow pilot. See [Config.Run].
//
// On a unix socket callers are known by the kernel's word, so a service answers
// there, from what it saved, while the certificate authority is away. Over TCP it
// needs its own certificate first, and takes workloads of the trust domain only.
package decider

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/writ-mesh/writ/internal/credential"
	"github.com/writ-mesh/writ/internal/identity"
	"github.com/writ-mesh/writ/internal/listen"
	"github.com/writ-mesh/writ/internal/peercred"
	"github.com/writ-mesh/writ/internal/rpc"
	"github.com/writ-mesh/writ/internal/service"
	"github.com/writ-mesh/writ/internal/xdsclient"
)

// subsystemListener is ready once calls are taken.
const subsystemListener = "listener"

// Config is the part of the configuration file that these services share.
type Config struct {
	// Listen is where Envoys call: "unix:///path", guarded by the socket's mode
	// and the caller's user, or "host:port" with mTLS. Without a credential,
	// which is for a service that runs alone, it is plain text and must be a
	// loopback address.
	Listen string `yaml:"listen"`
	// SocketMode is the mode of the unix socket in octal, 0600 if empty: only
	// this user's processes may call. Any wider mode means that whoever can open
	// the socket may.
	SocketMode string `yaml:"socket_mode"`
	// Pilot is pilot's address, host:port (mTLS).
	Pilot string `yaml:"pilot"`
	// Credential is where this service's own identity comes from.
	Credential credential.Config `yaml:"credential"`
	// State is a folder for what was last good; empty keeps none.
	State string `yaml:"state"`
}

// Validate checks everything that can be checked without starting. In the mesh
// Pilot is set, and a credential is needed.
func (c *Config) Validate() error {
	var errs []error
	if err := listen.Valid(c.Listen); err != nil {
		errs = append(errs, fmt.Errorf("listen: %w", err))
	}
	if _, err := listen.Mode(c.SocketMode); err != nil {
		errs = append(errs, err)
	}
	if c.Pilot != "" {
		if err := listen.Valid(c.Pilot); err != nil {
			errs = append(errs, fmt.Errorf("pilot: %w", err))
		}
	}
	if c.Pilot != "" || c.hasCredential() {
		if err := c.Credential.Validate(); err != nil {
			errs = append(errs, err)
		}
	} else if _, unix := listen.Unix(c.Listen); !unix {
		if err := listen.Loopback(c.Listen); err != nil {
			errs = append(errs, fmt.Errorf("listen: %w", err))
		}
	}
	return errors.Join(errs...)
}

func (c *Config) hasCredential() bool { return c.Credential != credential.Config{} }

// Service is what is particular to one of the services.
type Service struct {
	// Name is that of its identity, spiffe://<td>/writ/<Name>.
	Name string
	// Methods are the full names of the methods that Envoys call.
	Methods []string
	// Register registers the implementations of those methods.
	Register func(*grpc.Server)
	Options  []grpc.ServerOption
	// Subscriptions are what pilot is asked for, if there is a pilot.
	Subscriptions []xdsclient.Subscription
	// FollowPilot run beside the subscriptions, over the same connection, until their
	// context ends.
	FollowPilot []func(context.Context, grpc.ClientConnInterface) error
	// WithSource run once this service has its certificate, until their context ends.
	WithSource []func(context.Context, *credential.Source) error
	// Tasks run beside the server.
	Tasks []func(context.Context) error
}

// Register makes the service ready only once it takes calls. It comes before
// anything else gets ready.
func Register(h *service.Health) { h.Register(subsystemListener) }

// task runs until its context ends.
type task = func(context.Context) error

// Run serves calls and follows pilot until ctx ends, and drains then.
func (c *Config) Run(ctx context.Context, s Service, rt *service.Runtime) error {
	if _, unix := listen.Unix(c.Listen); unix {
		allow := rpc.SameUser()
		if mode, err := listen.Mode(c.SocketMode); err != nil {
			return err
		} else if mode != listen.UnixMode {
			allow = rpc.Anyone() // the socket's mode says who
		}
		var more []task
		if c.hasCredential() {
			more = append(more, func(ctx context.Context) error {
				source, err := c.join(ctx, s, rt)
				if err != nil {
					return err
				}
				return service.RunTasks(ctx, c.withSource(source, s, rt)...)
			})
		}
		return c.serve(ctx, s, rt, peercred.Credentials(), allow, more)
	}
	if !c.hasCredential() {
		return c.serve(ctx, s, rt, insecure.NewCredentials(), rpc.Anyone(), nil)
	}
	source, err := c.join(ctx, s, rt)
	if err != nil {
		return err
	}
	return c.serve(ctx, s, rt, source.ServerCredentials(), rpc.AnyWorkload(), c.withSource(source, s, rt))
}

// join gets the service's own certificate.
func (c *Config) join(ctx context.Context, s Service, rt *service.Runtime) (*credential.Source, error) {
	td, err := spiffeid.TrustDomainFromString(c.Credential.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust domain: %w", err)
	}
	self, err := identity.Service(td, s.Name)
	if err != nil {
		return nil, err
	}
	return credential.New(ctx, c.Credential, self, rt.Log)
}

// withSource is what a certificate makes possible and asks for.
func (c *Config) withSource(source *credential.Source, s Service, rt *service.Runtime) []task {
	tasks := []task{source.Run}
	if c.Pilot != "" {
		tasks = append(tasks, func(ctx context.Context) error { return c.follow(ctx, source, s, rt) })
	}
	for _, with := range s.WithSource {
		tasks = append(tasks, func(ctx context.Context) error { return with(ctx, source) })
	}
	return tasks
}

// follow keeps the subscriptions as pilot has them.
func (c *Config) follow(ctx context.Context, source *credential.Source, s Service, rt *service.Runtime) error {
	pilot, err := identity.Service(source.ID().TrustDomain(), identity.Pilot)
	if err != nil {
		return err
	}
	conn, err := source.Dial(c.Pilot, pilot)
	if err != nil {
		return fmt.Errorf("pilot: %w", err)
	}
	defer func() { _ = conn.Close() }()
	// pilot knows who asks by the certificate; the node id says it once more.
	tasks := []task{func(ctx context.Context) error {
		return xdsclient.Run(ctx, conn, "writ-"+s.Name, rt.Log, s.Subscriptions...)
	}}
	for _, follow := range s.FollowPilot {
		tasks = append(tasks, func(ctx context.Context) error { return follow(ctx, conn) })
	}
	return service.RunTasks(ctx, tasks...)
}

// serve takes calls, beside the service's own tasks and more.
func (c *Config) serve(ctx context.Context, s Service, rt *service.Runtime, creds credentials.TransportCredentials, allow rpc.Allow, more []task) error {
	mode, err := listen.Mode(c.SocketMode)
	if err != nil {
		return err
	}
	l, err := listen.WithMode(c.Listen, mode)
	if err != nil {
		return err
	}
	methods := rpc.Methods{}
	for _, m := range s.Methods {
		methods[m] = allow
	}
	g := rpc.NewServer(creds, methods, rt, s.Options...)
	s.Register(g)
	if err := rpc.CheckMethods(g, methods); err != nil {
		return errors.Join(err, l.Close())
	}
	rt.Health.Set(subsystemListener, nil)
	rt.Log.InfoContext(ctx, "serving", slog.String("listen", c.Listen))
	tasks := []task{func(ctx context.Context) error { return rpc.Serve(ctx, g, l) }}
	return service.RunTasks(ctx, append(append(tasks, s.Tasks...), more...)...)
}
