// Rules that every gateway has. Each is scanned over every decoded part and archive member.
//
// meta:
//   kind = "malware"    a hit is malware: only for what nobody sends in good faith
//   kind = "heuristic"  a hit is evidence of `decibans` (10: ten to one), never malware
//
// The strings are written as hexadecimal where other scanners would take this file for what it looks for.

rule EICAR_Test_File
{
    meta:
        kind = "malware"
        why = "the test file that every scanner finds; anywhere in a stream, so that no wrapping hides it"
    strings:
        $eicar = { 58 35 4F 21 50 25 40 41 50 5B 34 5C 50 5A 58 35 34 28 50 5E 29 37 43 43 29 37 7D 24 45 49 43 41 52 2D 53 54 41 4E 44 41 52 44 2D 41 4E 54 49 56 49 52 55 53 2D 54 45 53 54 2D 46 49 4C 45 21 24 48 2B 48 2A }
    condition:
        $eicar
}

rule RTF_Equation_Object
{
    meta:
        kind = "heuristic"
        decibans = 12
        why = "an equation of the editor that was removed for CVE-2017-11882, embedded as raw object data; old documents have them too"
    strings:
        $class = "4571756174696f6e2e33" nocase
        $plain = "\\objclass Equation.3" nocase
        $clsid = "02ce020000000000c000000000000046" nocase
    condition:
        uint32be(0) == 0x7B5C7274 and any of them
}

rule RTF_Self_Updating_Object
{
    meta:
        kind = "heuristic"
        decibans = 12
        why = "an embedded object that loads by itself when the document is opened: how exploits in RTF start"
    strings:
        $update = "\\objupdate"
        $data = "\\objdata"
    condition:
        uint32be(0) == 0x7B5C7274 and all of them
}

rule RTF_Embedded_Program
{
    meta:
        kind = "heuristic"
        decibans = 15
        why = "the hexadecimal beginning of a Windows program within an RTF object"
    strings:
        $dos_stub = "546869732070726f6772616d2063616e6e6f742062652072756e20696e20444f53206d6f6465" nocase
    condition:
        uint32be(0) == 0x7B5C7274 and $dos_stub
}

rule OOXML_Remote_Template
{
    meta:
        kind = "heuristic"
        decibans = 10
        why = "a document that fetches its template over the network when opened"
    strings:
        $type = "relationships/attachedTemplate"
        $remote = /Target="https?:\/\//
        $external = "TargetMode=\"External\""
    condition:
        filesize < 256KB and all of them
}

rule OOXML_Remote_Object
{
    meta:
        kind = "heuristic"
        decibans = 15
        why = "an external object with a moniker that runs a handler (mhtml:, ms-msdt:, script:): CVE-2021-40444, CVE-2022-30190"
    strings:
        $type = "relationships/oleObject"
        $external = "TargetMode=\"External\""
        $mhtml = "mhtml:http" nocase
        $script = "script:http" nocase
        $html = /Target="https?:\/\/[^"]{1,200}\.html!?"/
    condition:
        filesize < 256KB and $type and $external and any of ($mhtml, $script, $html)
}

rule Diagnostic_Tool_Handler
{
    meta:
        kind = "heuristic"
        decibans = 20
        why = "a link to ms-msdt: with parameters, as CVE-2022-30190 uses"
    strings:
        $handler = "ms-msdt:" nocase
        $parameter = "IT_RebrowseForFile" nocase
    condition:
        all of them
}

rule Shortcut_Runs_Interpreter
{
    meta:
        kind = "heuristic"
        decibans = 20
        why = "a Windows shortcut that starts a script interpreter; shortcuts to documents do not"
    strings:
        $powershell = "powershell" ascii wide nocase
        $mshta = "mshta" ascii wide nocase
        $wscript = "wscript" ascii wide nocase
        $cscript = "cscript" ascii wide nocase
        $cmd = "cmd.exe" ascii wide nocase
        $rundll = "rundll32" ascii wide nocase
    condition:
        uint32be(0) == 0x4C000000 and uint32be(4) == 0x01140200 and any of them
}

rule Script_Embeds_Program
{
    meta:
        kind = "heuristic"
        decibans = 15
        why = "a Windows program as text (base64 or hexadecimal with its DOS message) within a script or a page that can run"
    strings:
        $base64 = /TV[oqpr][A-Za-z0-9+\/]{20}AAA[A-Za-z0-9+\/=]{40}/
        $base64_stub = "VGhpcyBwcm9ncmFtIGNhbm5vdCBiZSBydW4gaW4gRE9TIG1vZGU"
        $hexadecimal = "4d5a90000300000004000000ffff0000" nocase
        $run_script = "<script" nocase
        $run_shell = "WScript" nocase
        $run_object = "CreateObject" nocase
        $run_active = "ActiveXObject" nocase
        $run_power = "FromBase64String" nocase
    condition:
        uint16be(0) != 0x4D5A and any of ($base64, $base64_stub, $hexadecimal) and any of ($run_*)
}

rule Script_Downloads_And_Runs
{
    meta:
        kind = "heuristic"
        decibans = 18
        why = "a Windows script that fetches from the network, writes a file and starts it"
    strings:
        $http1 = "MSXML2.XMLHTTP" nocase
        $http2 = "WinHttp.WinHttpRequest" nocase
        $http3 = "MSXML2.ServerXMLHTTP" nocase
        $write = "ADODB.Stream" nocase
        $run1 = "WScript.Shell" nocase
        $run2 = "Shell.Application" nocase
    condition:
        filesize < 1MB and any of ($http*) and $write and any of ($run*)
}

rule Page_Builds_Download
{
    meta:
        kind = "heuristic"
        decibans = 10
        why = "a page that carries a file in itself and saves it by script, past scanners of downloads"
    strings:
        $decode = "atob(" nocase
        $blob = "new Blob(" nocase
        $save1 = "msSaveOrOpenBlob" nocase
        $save2 = "createObjectURL" nocase
        $click = ".download" nocase
    condition:
        filesize < 20MB and $decode and $blob and any of ($save*) and $click
}

rule PowerShell_Hidden_Encoded
{
    meta:
        kind = "heuristic"
        decibans = 15
        why = "a hidden PowerShell with an encoded command"
    strings:
        $encoded = /powershell(\.exe)?["']?\s[^\r\n]{0,200}-e(nc|ncodedcommand)?\s+[A-Za-z0-9+\/]{60}/ nocase
    condition:
        $encoded
}
