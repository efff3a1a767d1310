package cli

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-mesh/writ/internal/listen"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// rootStatus is the answer of `writ roots`.
type rootStatus struct {
	Bundle   uint64        `json:"bundle"`
	Roots    []rootRow     `json:"roots"`
	Rotation *rotationInfo `json:"rotation,omitempty"`
	Last     *rotationInfo `json:"last,omitempty"`
	// Problem is why the newest set from outside is not in force.
	Problem string `json:"problem,omitempty"`
}

type rootRow struct {
	KeyID    string    `json:"keyId"`
	Subject  string    `json:"subject"`
	Active   bool      `json:"active"`
	NotAfter time.Time `json:"notAfter"`
	// Live is how many of its certificates have not expired.
	Live      uint64    `json:"live"`
	LiveUntil time.Time `json:"liveUntil,omitzero"`
}

type rotationInfo struct {
	Step      string    `json:"step"`
	Old       string    `json:"old"`
	New       string    `json:"new"`
	StartedAt time.Time `json:"startedAt"`
	StartedBy string    `json:"startedBy"`
	Since     time.Time `json:"since"`
	Force     bool      `json:"force,omitempty"`
	// Compromised: the old root was dropped when the new one began to sign.
	Compromised bool      `json:"compromised,omitempty"`
	Manual      bool      `json:"manual,omitempty"`
	Gate        []holdRow `json:"gate"`
	Skipped     []holdRow `json:"skipped,omitempty"`
	Problem     string    `json:"problem,omitempty"`
}

type holdRow struct {
	Holder  string    `json:"holder"`
	Reason  string    `json:"reason"`
	Proxies []string  `json:"proxies,omitempty"`
	Since   time.Time `json:"since,omitzero"`
	Until   time.Time `json:"until,omitzero"`
}

// caSocket are the flags that say where the authority's admin socket is.
type caSocket struct{ state, admin string }

func (s *caSocket) register(c *cobra.Command) {
	stateFlag(c, &s.state)
	c.Flags().StringVar(&s.admin, "admin", "", "the authority's admin `socket`, unix:///path, instead of that of a mesh directory")
}

func (s *caSocket) dial(args []string) (*grpc.ClientConn, error) {
	if s.admin == "" {
		return admin(meshDir(args), s.state, "ca")
	}
	if _, ok := listen.Unix(s.admin); !ok {
		return nil, fmt.Errorf("--admin %q: want unix:///absolute/path, the authority's admin socket", s.admin)
	}
	return grpc.NewClient(s.admin, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

func rootsCommand() *cobra.Command {
	var o output
	var at caSocket
	c := &cobra.Command{
		Use:   "roots [DIR]",
		Short: "Show the roots of the mesh, and how far their rotation has come",
		Long: `Show the root certificates that are trusted, which of them signs, and how far a
rotation has come: who holds up its next step, and why.`,
		Example: "  writ roots examples/bookinfo\n  writ roots rotate --watch examples/bookinfo",
		Args:    anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAuthority(cmd, at, args, capb.NewRootsClient, func(ctx context.Context, roots capb.RootsClient) error {
				st, err := roots.GetRoots(ctx, &capb.GetRootsRequest{})
				if err != nil {
					return err
				}
				return printRootStatus(cmd.OutOrStdout(), o, st)
			})
		},
	}
	o.register(c)
	at.register(c)
	c.AddCommand(rotateCommand(), abortCommand(), replicasCommand(), admitCommand(), renewMemberCommand(), revokeRootCommand())
	return c
}

// withAuthority calls f with a client of one of the authority's services, for as long as
// one call may take.
func withAuthority[C any](cmd *cobra.Command, at caSocket, args []string, client func(grpc.ClientConnInterface) C, f func(context.Context, C) error) error {
	conn, err := at.dial(args)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
	defer cancel()
	return refusedRotation(f(ctx, client(conn)))
}

// refusedRotation makes a "no" of what the state of the roots does not allow.
func refusedRotation(err error) error {
	if status.Code(err) == codes.FailedPrecondition {
		return failed(errors.New(status.Convert(err).Message()))
	}
	return err
}

func rotateCommand() *cobra.Command {
	var o output
	var at caSocket
	var watch bool
	var timeout time.Duration
	req := new(capb.RotateRootRequest)
	c := &cobra.Command{
		Use:   "rotate [DIR]",
		Short: "Replace the root while everything runs",
		Long: `Replace the root while everything runs. A new root is made and handed out beside
the old one; when every node agent, service and Envoy has it, the new one signs;
when nobody uses a certificate of the old one any more, that is dropped and its
key removed. Who holds up a step is named. The rotation goes on by itself, also
after a restart of the authority; called again, this lets it go on with other
flags.
With --watch the exit code is 0 when the rotation is done, and 1 when it was
aborted.`,
		Example: "  writ roots rotate --watch examples/bookinfo\n  writ roots rotate --compromised examples/bookinfo",
		Args:    anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			err := withAuthority(cmd, at, args, capb.NewRootsClient, func(ctx context.Context, roots capb.RootsClient) error {
				st, err := roots.RotateRoot(ctx, req)
				if err != nil || watch {
					return err
				}
				return printRootStatus(cmd.OutOrStdout(), o, st)
			})
			if err != nil || !watch {
				return err
			}
			ctx := cmd.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			return watchRotation(ctx, cmd.OutOrStdout(), o, at, args)
		},
	}
	o.register(c)
	at.register(c)
	f := c.Flags()
	f.BoolVar(&watch, "watch", false, "follow it until it is done")
	f.DurationVar(&timeout, "timeout", 0, "with --watch, how long to follow it (default for as long as it takes)")
	f.BoolVar(&req.Force, "force", false, "wait for nobody; who was not waited for is told")
	f.BoolVar(&req.Compromised, "compromised", false, "the old root's key may be in other hands: wait for nobody and drop it at once")
	f.BoolVar(&req.Manual, "manual", false, "stop before each step until this is called again")
	f.StringSliceVar(&req.Replicas, "replica", nil, "hand the new key over to the authority over the same ledger with this `id` only, or to \"none\" (default to all; with --compromised name them)")
	return c
}

func abortCommand() *cobra.Command {
	var o output
	var at caSocket
	c := &cobra.Command{
		Use:   "abort [DIR]",
		Short: "Take a new root out again that does not sign yet",
		Long: `Take a new root out again that does not sign yet. Once it does, there is no way
back: its certificates are in use.`,
		Example: "  writ roots abort examples/bookinfo",
		Args:    anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAuthority(cmd, at, args, capb.NewRootsClient, func(ctx context.Context, roots capb.RootsClient) error {
				st, err := roots.AbortRotation(ctx, &capb.AbortRotationRequest{})
				if err != nil {
					return err
				}
				return printRootStatus(cmd.OutOrStdout(), o, st)
			})
		},
	}
	o.register(c)
	at.register(c)
	return c
}

// watchRotation prints each change of a rotation until it has ended. While the
// authority is away it goes on when that is back.
func watchRotation(ctx context.Context, out io.Writer, o output, at caSocket, args []string) error {
	conn, err := at.dial(args)
	if err != nil {
		return err
	}
	defer conn.Close()
	told := ""
	for {
		stream, err := capb.NewRootsClient(conn).WatchRoots(ctx, &capb.WatchRootsRequest{}, grpc.WaitForReady(true))
		for err == nil {
			var st *capb.RootsStatus
			if st, err = stream.Recv(); err != nil {
				break
			}
			if st.GetRotation() != nil {
				if o != "json" {
					told = printStep(out, st.GetRotation(), told)
				}
				continue
			}
			if st, err = capb.NewRootsClient(conn).GetRoots(ctx, &capb.GetRootsRequest{}); err != nil {
				return err
			}
			if err := printRootStatus(out, o, st); err != nil {
				return err
			}
			if st.GetLast().GetStep() != capb.RotationStep_ROTATION_STEP_DONE {
				return errNo
			}
			return nil
		}
		switch {
		case ctx.Err() != nil:
			return failed(errors.New("the rotation has not ended; it goes on: `writ roots` says how far it is"))
		case status.Code(err) != codes.Unavailable:
			return err
		}
	}
}

// printStep prints where a rotation stands, if that is not what was told last, and
// returns it.
func printStep(out io.Writer, r *capb.Rotation, told string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", stepText(r))
	for _, h := range r.GetGate() {
		fmt.Fprintf(&b, "  %s\n", holdText(h))
	}
	if b.String() != told {
		fmt.Fprint(out, b.String())
	}
	return b.String()
}

func stepText(r *capb.Rotation) string {
	var text string
	switch r.GetStep() {
	case capb.RotationStep_ROTATION_STEP_DISTRIBUTING:
		text = fmt.Sprintf("the new root %s is handed out, the old one signs", short(r.GetNewRoot()))
	case capb.RotationStep_ROTATION_STEP_DRAINING:
		text = fmt.Sprintf("the new root %s signs, certificates of the old one are replaced", short(r.GetNewRoot()))
	case capb.RotationStep_ROTATION_STEP_DONE:
		text = fmt.Sprintf("the new root %s signs, the old one is dropped", short(r.GetNewRoot()))
	case capb.RotationStep_ROTATION_STEP_ABORTED:
		text = fmt.Sprintf("the new root %s was taken out again", short(r.GetNewRoot()))
	case capb.RotationStep_ROTATION_STEP_UNSPECIFIED:
		text = "unknown"
	}
	switch {
	case r.GetProblem() != "":
		text += "; it cannot go on: " + r.GetProblem()
	case len(r.GetGate()) > 0:
		text += fmt.Sprintf("; waiting for %d:", len(r.GetGate()))
	case r.GetManual() && ongoing(r):
		text += "; nobody holds it up: `writ roots rotate --manual` does the next step"
	}
	return text
}

func ongoing(r *capb.Rotation) bool {
	s := r.GetStep()
	return s == capb.RotationStep_ROTATION_STEP_DISTRIBUTING || s == capb.RotationStep_ROTATION_STEP_DRAINING
}

func holdText(h *capb.Hold) string {
	text := h.GetHolder() + " " + h.GetReason()
	if len(h.GetProxies()) > 0 {
		names := make([]string, 0, len(h.GetProxies()))
		for _, p := range h.GetProxies() {
			names = append(names, clientName(p))
		}
		text += ": " + strings.Join(names, ", ")
	}
	if h.GetUntil() != nil {
		text += fmt.Sprintf(" (its certificate expires at %s UTC)", utc(h.GetUntil().AsTime()))
	}
	return text
}

// short is enough of a key id to tell roots apart.
func short(keyID string) string { return keyID[:min(len(keyID), 12)] }

func printRootStatus(out io.Writer, o output, st *capb.RootsStatus) error {
	v, err := rootsOf(st)
	if err != nil {
		return err
	}
	return o.print(out, v, func(out io.Writer) error { return printRootTable(out, v, st, time.Now()) })
}

func rootsOf(st *capb.RootsStatus) (*rootStatus, error) {
	v := &rootStatus{Bundle: st.GetSequence(), Roots: []rootRow{}, Rotation: rotationOf(st.GetRotation()), Last: rotationOf(st.GetLast()), Problem: st.GetProblem()}
	for _, r := range st.GetRoots() {
		cert, err := x509.ParseCertificate(r.GetCertificate())
		if err != nil {
			return nil, err
		}
		v.Roots = append(v.Roots, rootRow{
			KeyID: r.GetKeyId(), Subject: cert.Subject.String(), Active: r.GetActive(), NotAfter: cert.NotAfter,
			Live: r.GetLive(), LiveUntil: timeOf(r.GetLiveUntil()),
		})
	}
	return v, nil
}

func rotationOf(r *capb.Rotation) *rotationInfo {
	if r == nil {
		return nil
	}
	return &rotationInfo{
		Step: strings.ToLower(strings.TrimPrefix(r.GetStep().String(), "ROTATION_STEP_")), Old: r.GetOldRoot(), New: r.GetNewRoot(),
		StartedAt: timeOf(r.GetStartedAt()), StartedBy: r.GetStartedBy(), Since: timeOf(r.GetStepSince()),
		Force: r.GetForce(), Compromised: r.GetCompromised(), Manual: r.GetManual(),
		Gate: holdsOf(r.GetGate()), Skipped: holdsOf(r.GetSkipped()), Problem: r.GetProblem(),
	}
}

func holdsOf(holds []*capb.Hold) []holdRow {
	out := []holdRow{}
	for _, h := range holds {
		out = append(out, holdRow{h.GetHolder(), h.GetReason(), h.GetProxies(), timeOf(h.GetSince()), timeOf(h.GetUntil())})
	}
	return out
}

// timeOf is the zero time for none.
func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

func printRootTable(out io.Writer, v *rootStatus, st *capb.RootsStatus, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ROOT\tSIGNS\tEXPIRES IN\tLIVE CERTIFICATES\tLAST OF THEM EXPIRES IN\tSUBJECT")
	for _, r := range v.Roots {
		signs, last := "no", "-"
		if r.Active {
			signs = "yes"
		}
		if r.Live > 0 {
			last = left(r.LiveUntil, now)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n", short(r.KeyID), signs, left(r.NotAfter, now), r.Live, last, r.Subject)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if v.Problem != "" {
		fmt.Fprintf(out, "\nthe newest set of certificates is not in force: %s\n", v.Problem)
	}
	r := st.GetRotation()
	if r == nil {
		r = st.GetLast()
	}
	if r == nil {
		return nil
	}
	fmt.Fprintf(out, "\nrotation of %s UTC, by %s: ", utc(r.GetStartedAt().AsTime()), r.GetStartedBy())
	printStep(out, r, "")
	if len(r.GetSkipped()) > 0 {
		fmt.Fprintln(out, "not waited for:")
	}
	for _, h := range r.GetSkipped() {
		fmt.Fprintf(out, "  %s\n", holdText(h))
	}
	return nil
}
