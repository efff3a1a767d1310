package cli

import (
	"bytes"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// TestHelp: every command has an example, and every flag that wants a value says
// what kind of value in a word.
func TestHelp(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		var out bytes.Buffer
		args := append(strings.Fields(c.CommandPath())[1:], "--help")
		if code := Main(args, &out, &out); code != 0 {
			t.Errorf("%v: exit code %d", args, code)
		}
		for _, want := range []string{"Examples:\n  writ ", "Usage:\n  writ"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%v: %q is not in:\n%s", args, want, &out)
			}
		}
		if m := regexp.MustCompile(`--[a-z-]+ (string|writ \S+)  .*`).FindString(out.String()); m != "" && !strings.HasPrefix(m, "--output") {
			t.Errorf("%v: %s", args, m)
		}
		if strings.Contains(out.String(), "folder") {
			t.Errorf("%v: a folder is a directory elsewhere", args)
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	root := &cobra.Command{Use: "writ"}
	root.AddCommand(upCommand(), checkCommand(), validateCommand(), statusCommand(), getCommand(), waitCommand(), certsCommand(), explainCommand(), whoCanCommand(), diffCommand(), proxyConfigCommand(), bootstrapCommand(), versionCommand())
	for _, c := range root.Commands() {
		walk(c)
	}
}

func TestWrongCommandLine(t *testing.T) {
	for _, tc := range []struct {
		args, want string
	}{
		{"up", "name one mesh directory, for example:"},
		{"up a b", "name one mesh directory, for example:"},
		{"status a b", "name one mesh directory, or none"},
		{"bootstrap", "name one file of instances, for example:"},
		{"certs join-token", "name one PATH=FILE or several, for example:"},
		{"certs show", "name one replica or gateway"},
		{"certs sl", `unknown command "sl"`},
		{"proxy-config routes", "name one replica or gateway"},
		{"proxy-config ruotes", `unknown command "ruotes"`},
		{"proxy-config routes a -f b", "name no workload"},
		{"get", "name one kind or \"all\""},
		{"get virtualservcies", `"virtualservcies" is no kind: there are AccessList, AuthorizationPolicy`},
		{"get all -o xml .", "want table or json"},
		{"nonsense", `unknown command "nonsense"`},
		{"status /nowhere", "/nowhere is no mesh directory"},
	} {
		var out bytes.Buffer
		if code := Main(strings.Fields(tc.args), &out, &out); code != 2 || !strings.Contains(out.String(), tc.want) {
			t.Errorf("%s: exit code %d, want 2 and %q in:\n%s", tc.args, code, tc.want, &out)
		}
	}
	for _, args := range []string{"version", "--version"} {
		var out bytes.Buffer
		if code := Main([]string{args}, &out, &out); code != 0 || !strings.HasPrefix(out.String(), "writ 0.") {
			t.Errorf("%s: exit code %d, %s", args, code, &out)
		}
	}
}

func TestNewestCertificates(t *testing.T) {
	rows := []certificate{
		{SPIFFEID: "spiffe://d/ns/n/sa/a", Serial: "1"},
		{SPIFFEID: "spiffe://d/ns/n/sa/a", Serial: "2", Workloads: []string{"a-1"}},
		{SPIFFEID: "spiffe://d/ns/n/sa/a", Serial: "3", Workloads: []string{"a-2"}},
		{SPIFFEID: "spiffe://d/writ/pilot", Serial: "4"},
		{SPIFFEID: "spiffe://d/writ/pilot", Serial: "5"},
		{SPIFFEID: "spiffe://d/ns/n/sa/a", Serial: "6"},
	}
	var got []string
	for _, r := range newest(rows) {
		got = append(got, r.Serial+" "+holder(r))
	}
	if want := []string{"2 a-1", "3 a-2", "5 writ-pilot"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestLeft(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for d, want := range map[time.Duration]string{
		0: "expired", 59 * time.Second: "59s", 52*time.Minute + 9*time.Second: "52m", 30 * time.Hour: "30h", 3650 * 24 * time.Hour: "3650d",
	} {
		if got := left(now.Add(d), now); got != want {
			t.Errorf("%s: got %s, want %s", d, got, want)
		}
	}
}

func TestTerminal(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(newTerminal(&out, slog.LevelWarn)).With(slog.String("log", "/x.log"))
	log.InfoContext(t.Context(), "nothing")
	log.WarnContext(t.Context(), "it ended", slog.String("exit", "signal: killed"), slog.Int("times", 1))
	log.ErrorContext(t.Context(), "no")
	if want := "warning: it ended (exit=\"signal: killed\" times=1 log=/x.log)\nerror: no (log=/x.log)\n"; out.String() != want {
		t.Errorf("got %s, want %s", &out, want)
	}
}

// TestGet lists what is in a directory, by any name of a kind.
func TestGet(t *testing.T) {
	const dir = "../../../../examples/bookinfo"
	for _, tc := range []struct {
		args string
		code int
		want []string
	}{
		{"get gateways " + dir, 0, []string{"Gateway  istio-system  bookinfo-gateway  "}},
		{"get gw --yaml " + dir, 0, []string{"kind: Gateway", "name: bookinfo-gateway"}},
		{"get AuthorizationPolicies " + dir + " -o json", 0, []string{`"kind": "AuthorizationPolicy"`, `"object": {`, `"line": `}},
		{"get all --name reviews " + dir, 0, []string{"VirtualService", "DestinationRule", "networking.yaml:"}},
		{"get vs -n nowhere " + dir, 1, []string{"there are none such"}},
		{"get vs /nowhere", 2, []string{"/nowhere is no mesh directory"}},
	} {
		var out bytes.Buffer
		if code := Main(strings.Fields(tc.args), &out, &out); code != tc.code {
			t.Errorf("%s: exit code %d, want %d\n%s", tc.args, code, tc.code, &out)
		}
		for _, want := range tc.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: %q is not in\n%s", tc.args, want, &out)
			}
		}
	}
}
