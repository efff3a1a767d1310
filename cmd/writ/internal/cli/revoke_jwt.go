package cli

import (
	"bufio"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

// tokensAtOnce is how many revocations pilot takes in one call.
const tokensAtOnce = 1000

// maxTokenFile bounds the file of a token, or of a line of --jti-file, in bytes.
const maxTokenFile = 64 << 10

// revokedToken is a row of `writ revoke ls`.
type revokedToken struct {
	Issuer       string     `json:"issuer"`
	ID           string     `json:"jti,omitempty"`
	Subject      string     `json:"sub,omitempty"`
	IssuedBefore *time.Time `json:"issuedBefore,omitempty"`
	Until        *time.Time `json:"until,omitempty"`
	RevokedAt    time.Time  `json:"revokedAt"`
	Actor        string     `json:"actor,omitempty"`
}

func revokedTokenOf(r *pilotpb.TokenRevocation) revokedToken {
	row := revokedToken{Issuer: r.GetIssuer(), ID: r.GetJti(), Subject: r.GetSub(), RevokedAt: r.GetRevokedAt().AsTime(), Actor: r.GetActor()}
	for _, t := range []struct {
		in *timestamppb.Timestamp
		to **time.Time
	}{{r.GetIssuedBefore(), &row.IssuedBefore}, {r.GetUntil(), &row.Until}} {
		if t.in != nil {
			at := t.in.AsTime()
			*t.to = &at
		}
	}
	return row
}

// what is what a revocation is of, for people.
func (r revokedToken) what() string {
	var out string
	switch {
	case r.ID != "":
		out = "jti " + r.ID
	case r.Subject != "":
		out = "sub " + r.Subject
	default:
		out = "all tokens"
	}
	if r.IssuedBefore != nil {
		out += " issued before " + utc(*r.IssuedBefore)
	}
	return out
}

func revokeTokensCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "revoke",
		Short: "Revoke JSON Web Tokens before they expire",
		Long: `Revoke JSON Web Tokens before they expire: one by its jti, those of a subject, or those of an issuer.
Certificates and identities are revoked by writ certs revoke.`,
		Example: "  writ revoke jwt --issuer https://issuer.example --jti 5c1f examples/bookinfo\n  writ revoke ls examples/bookinfo",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return fmt.Errorf("unknown command %q of writ revoke: it has jwt, ls and undo", args[0])
		},
	}
	c.AddCommand(revokeJWTCommand(), revokeListCommand(), revokeUndoCommand())
	return c
}

// tokenFlags say which tokens are meant.
type tokenFlags struct {
	at                       pilotAt
	issuer, sub, token, file string
	jti                      []string
}

// pilotAt is the pilot that is meant.
type pilotAt struct{ state, socket string }

func (p *pilotAt) register(c *cobra.Command) {
	stateFlag(c, &p.state)
	c.Flags().StringVar(&p.socket, "admin", "", "pilot's admin `socket`, unix:///path, instead of a mesh of writ up")
}

func (f *tokenFlags) register(c *cobra.Command) {
	f.at.register(c)
	c.Flags().StringVar(&f.issuer, "issuer", "", "the `issuer` of the tokens, their claim iss")
	c.Flags().StringArrayVar(&f.jti, "jti", nil, "the token with this `jti`; may be given several times")
	c.Flags().StringVar(&f.file, "jti-file", "", "tokens with the jti of each line of this `file`, - for standard input")
	c.Flags().StringVar(&f.sub, "sub", "", "all tokens of this `subject`")
	c.Flags().StringVar(&f.token, "token", "", "the token in this `file`, - for standard input: its iss and jti, and its exp as --until; it is not verified")
}

// revocations are those that the flags name, without times.
func (f *tokenFlags) revocations(stdin io.Reader, all bool) ([]*pilotpb.TokenRevocation, error) {
	ids := f.jti
	if f.file != "" {
		lines, err := readLines(f.file, stdin)
		if err != nil {
			return nil, err
		}
		ids = append(ids, lines...)
	}
	var out []*pilotpb.TokenRevocation
	if f.token != "" {
		if f.issuer != "" || f.sub != "" || len(ids) > 0 {
			return nil, errors.New("--token says issuer and jti; leave the other flags out")
		}
		r, err := revocationOfToken(f.token, stdin)
		if err != nil {
			return nil, err
		}
		return append(out, r), nil
	}
	if f.issuer == "" {
		return nil, errors.New("--issuer is missing: a jti or sub means something with its issuer only")
	}
	for _, id := range ids {
		if id == "" {
			return nil, errors.New("--jti is empty")
		}
		out = append(out, &pilotpb.TokenRevocation{Issuer: f.issuer, Jti: id})
	}
	if f.sub != "" {
		out = append(out, &pilotpb.TokenRevocation{Issuer: f.issuer, Sub: f.sub})
	}
	if len(out) == 0 {
		if !all {
			return nil, errors.New("say which tokens: --jti, --sub, --token, or --issued-before for all of the issuer (--all whenever they were issued)")
		}
		out = append(out, &pilotpb.TokenRevocation{Issuer: f.issuer})
	}
	return out, nil
}

func open(name string, stdin io.Reader) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(stdin), nil
	}
	return os.Open(name)
}

func readLines(name string, stdin io.Reader) (lines []string, err error) {
	f, err := open(name, stdin)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		if line := strings.TrimSpace(s.Text()); line != "" {
			lines = append(lines, line)
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return lines, nil
}

// revocationOfToken reads what a token says about itself. No error has a part of it.
func revocationOfToken(name string, stdin io.Reader) (*pilotpb.TokenRevocation, error) {
	f, err := open(name, stdin)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxTokenFile))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	parts := strings.Split(strings.TrimSpace(string(raw)), ".")
	if len(parts) != 3 {
		return nil, fmt.Errorf("%s is not a JSON Web Token: it does not have three parts", name)
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims map[string]any
	if err != nil || json.Unmarshal(payload, &claims) != nil {
		return nil, fmt.Errorf("%s is not a JSON Web Token: its payload is no JSON object in base64url", name)
	}
	issuer, _ := claims["iss"].(string)
	id, _ := claims["jti"].(string)
	if issuer == "" || id == "" {
		return nil, fmt.Errorf("%s has no iss or no jti: revoke it by --issuer and --sub, or --issued-before", name)
	}
	r := &pilotpb.TokenRevocation{Issuer: issuer, Jti: id}
	if exp, ok := claims["exp"].(float64); ok && exp > 0 && exp < 1<<32 {
		r.Until = timestamppb.New(time.Unix(int64(exp)+1, 0))
	}
	return r, nil
}

// moment reads a time: RFC 3339, "now", or with after a duration from now.
func moment(flag, text string, now time.Time, after bool) (*timestamppb.Timestamp, error) {
	if text == "" {
		return nil, nil
	}
	if text == "now" {
		return timestamppb.New(now.Truncate(time.Second)), nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return timestamppb.New(t.Truncate(time.Second)), nil
	}
	if d, err := time.ParseDuration(text); err == nil && after && d > 0 {
		return timestamppb.New(now.Add(d).Truncate(time.Second)), nil
	}
	want := "a time such as 2026-01-31T12:00:00Z, or now"
	if after {
		want = "a time such as 2026-01-31T12:00:00Z, or a duration such as 24h"
	}
	return nil, fmt.Errorf("--%s %q: want %s", flag, text, want)
}

func revokeJWTCommand() *cobra.Command {
	var o output
	var f tokenFlags
	var before, until string
	var all bool
	c := &cobra.Command{
		Use:   "jwt [DIR]",
		Short: "Revoke tokens by jti, by subject, or by when they were issued",
		Long: `Revoke tokens that one issuer signed: by jti, by sub, or all that it issued before a time (--issued-before, also with --sub).
Requests with such a token are refused everywhere in the mesh within a second, whoever sends them; other tokens are not
affected. A token that does not say when it was issued (iat) counts as issued before. Say with --until when the last of
the tokens expires, so that the revocation is forgotten then; without it, it stays until writ revoke undo.
The revocation is on pilot's disk before the command ends. Only pilot's own user and root may do this.`,
		Example: "  writ revoke jwt --issuer https://issuer.example --jti 5c1f --until 24h examples/bookinfo\n" +
			"  writ revoke jwt --issuer https://issuer.example --sub alice --issued-before now examples/bookinfo\n" +
			"  writ revoke jwt --token leaked.jwt examples/bookinfo",
		Args: anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			rs, err := f.revocations(cmd.InOrStdin(), before != "" || all)
			if err != nil {
				return err
			}
			if err := setTimes(rs, before, until, time.Now()); err != nil {
				return err
			}
			var resp *pilotpb.RevokeTokensResponse
			already := uint32(0)
			err = f.at.call(cmd.Context(), args, func(ctx context.Context, pilot pilotpb.TokenRevocationsClient) error {
				for done := 0; done < len(rs); done += tokensAtOnce {
					if resp, err = pilot.RevokeTokens(ctx, &pilotpb.RevokeTokensRequest{Revocations: rs[done:min(len(rs), done+tokensAtOnce)]}); err != nil {
						return fmt.Errorf("after %d of %d: %w", done, len(rs), err)
					}
					already += resp.GetAlready()
				}
				return nil
			})
			if err != nil {
				return err
			}
			result := revokeResult{Revoked: len(rs), Already: already, Total: resp.GetTotal(), Remote: resp.GetRemote()}
			return o.print(cmd.OutOrStdout(), result, func(w io.Writer) error {
				what := fmt.Sprintf("%d revocations", len(rs))
				if len(rs) == 1 {
					what = revokedTokenOf(rs[0]).what() + " of " + rs[0].GetIssuer()
				}
				where := "every proxy knows them"
				if result.Remote {
					where = "proxies ask authz about each token"
				}
				_, err := fmt.Fprintf(w, "revoked: %s (%d known before); %d in force, %s\n", what, already, result.Total, where)
				return err
			})
		},
	}
	o.register(c)
	f.register(c)
	c.Flags().StringVar(&before, "issued-before", "", "only tokens issued before this `time` (RFC 3339), or now")
	c.Flags().StringVar(&until, "until", "", "when the last of the tokens expires: a `time` (RFC 3339) or a duration from now")
	c.Flags().BoolVar(&all, "all", false, "with --issuer alone: all tokens of the issuer, whenever they were issued")
	return c
}

// revokeResult is the answer of writ revoke jwt for programs.
type revokeResult struct {
	Revoked int    `json:"revoked"`
	Already uint32 `json:"already"`
	Total   uint64 `json:"total"`
	Remote  bool   `json:"remote"`
}

func setTimes(rs []*pilotpb.TokenRevocation, before, until string, now time.Time) error {
	b, err := moment("issued-before", before, now, false)
	if err != nil {
		return err
	}
	u, err := moment("until", until, now, true)
	if err != nil {
		return err
	}
	for _, r := range rs {
		r.IssuedBefore, r.Until = b, cmp.Or(u, r.GetUntil())
	}
	return nil
}

func revokeListCommand() *cobra.Command {
	var o output
	var at pilotAt
	c := &cobra.Command{
		Use:     "ls [DIR]",
		Short:   "List the revocations of tokens in force",
		Example: "  writ revoke ls examples/bookinfo\n  writ revoke ls examples/bookinfo -o json",
		Args:    anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			rows := []revokedToken{}
			err := at.call(cmd.Context(), args, func(ctx context.Context, pilot pilotpb.TokenRevocationsClient) error {
				stream, err := pilot.ListRevokedTokens(ctx, &pilotpb.ListRevokedTokensRequest{})
				for err == nil {
					var m *pilotpb.ListRevokedTokensResponse
					if m, err = stream.Recv(); err == nil {
						for _, r := range m.GetRevocations() {
							rows = append(rows, revokedTokenOf(r))
						}
					}
				}
				if errors.Is(err, io.EOF) {
					return nil
				}
				return err
			})
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), rows, func(w io.Writer) error { return printRevokedTokens(w, rows) })
		},
	}
	o.register(c)
	at.register(c)
	return c
}

func printRevokedTokens(out io.Writer, rows []revokedToken) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(out, "no token is revoked")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "REVOKED AT (UTC)\tBY\tUNTIL (UTC)\tISSUER\tWHAT")
	for _, r := range rows {
		until := "undone"
		if r.Until != nil {
			until = utc(*r.Until)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", utc(r.RevokedAt), r.Actor, until, r.Issuer, r.what())
	}
	return w.Flush()
}

func revokeUndoCommand() *cobra.Command {
	var f tokenFlags
	var all bool
	c := &cobra.Command{
		Use:     "undo [DIR]",
		Short:   "Take revocations of tokens back",
		Example: "  writ revoke undo --issuer https://issuer.example --jti 5c1f examples/bookinfo",
		Args:    anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			rs, err := f.revocations(cmd.InOrStdin(), all)
			if err != nil {
				return err
			}
			gone := 0
			err = f.at.call(cmd.Context(), args, func(ctx context.Context, pilot pilotpb.TokenRevocationsClient) error {
				for done := 0; done < len(rs); done += tokensAtOnce {
					resp, err := pilot.UnrevokeTokens(ctx, &pilotpb.UnrevokeTokensRequest{Revocations: rs[done:min(len(rs), done+tokensAtOnce)]})
					if err != nil {
						return err
					}
					for _, r := range resp.GetRevocations() {
						gone++
						row := revokedTokenOf(r)
						if _, err := fmt.Fprintf(cmd.OutOrStdout(), "no longer revoked: %s of %s\n", row.what(), row.Issuer); err != nil {
							return err
						}
					}
				}
				return nil
			})
			if err == nil && gone == 0 {
				return failed(errors.New("nothing of that is revoked; see writ revoke ls"))
			}
			return err
		},
	}
	f.register(c)
	c.Flags().BoolVar(&all, "all", false, "with --issuer alone: the revocation of all tokens of the issuer, also one with --issued-before")
	return c
}

// call calls pilot.
func (p *pilotAt) call(ctx context.Context, args []string, call func(context.Context, pilotpb.TokenRevocationsClient) error) error {
	conn, err := adminSocket(args, p.state, p.socket, "pilot")
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, tokensTimeout)
	defer cancel()
	return call(ctx, pilotpb.NewTokenRevocationsClient(conn))
}

// tokensTimeout bounds a command: a million revocations are a thousand calls.
const tokensTimeout = 10 * time.Minute
