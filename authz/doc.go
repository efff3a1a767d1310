// Package authz is the service that decides what Envoy cannot decide itself: an
// ext_authz v3 server (envoy.service.auth.v3.Authorization) on Rego.
//
// In the mesh it subscribes to RegoPolicy and TokenIssuer at pilot. A change is
// compiled beside the running set and swapped in as a whole; what does not
// compile is refused with the policy's name and Rego's own error, and the last
// good set stays, on disk too, so that a restart while pilot is away goes on. A
// check names its policies in the context extension "writ.policies", each with the
// content that its routes go with; all of them have to allow it. What was replaced is
// kept a while for routes that still name it.
//
// Alone it stands where the OPA-Envoy plugin stands, with that plugin's
// configuration file, input document and forms of decision.
//
// It is closed when in doubt: an unknown policy, an undefined or malformed
// decision, an error, a panic, a time-out and a request that is too large or
// malformed are denials, answered as such and not as errors of the call, so that
// they hold where the caller lets requests pass when this service is away.
//
// What it does not do: it keeps no connection state, signs nothing, and believes
// its caller (an Envoy) about the request. See docs/security/authz.md.
package authz
